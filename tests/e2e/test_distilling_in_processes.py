"""DCM.py and HSAKD.py under torchrun:
two processes train the same weights, and one of them writes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import DCM
from experiments.accuracies import hits_of
from tests.unit.photos import make_folder

pytestmark = pytest.mark.e2e
ROOT = Path(DCM.__file__).parent
TEACHER = "checkpoint/train_teacher_cifar_arch_wrn_10_0.5_aux_dataset_cifar100_seed1/wrn_10_0.5_aux.pth.tar"
STUDENT = "checkpoint/train_student_cifar_tarch_wrn_10_0.5_aux_arch_resnet8_aux_dataset_cifar100_seed0/resnet8_aux.pth.tar"  # noqa: E501
# Each run is a process of its own in a shell; here they share one, and its group. Every epoch's
# weights are compared.
SCRIPT = """
import shlex, sys
import torch
import DCM, HSAKD
torch.distributed.destroy_process_group = lambda: None
original = DCM.train_one_epoch

def train(fit, loader, step, epoch):
    flat = lambda: torch.cat([weight.detach().flatten() for weight in fit.model.parameters()])
    before = flat()
    metrics = original(fit, loader, step, epoch)
    first, second = fit.runtime.gather(flat())
    fit.runtime.say(f"same {torch.equal(first, second)}, moved {not torch.equal(first, before)}")
    return metrics

DCM.train_one_epoch = HSAKD.train_one_epoch = train
for line in sys.argv[1:]:
    script, *words = shlex.split(line)
    {"DCM": DCM, "HSAKD": HSAKD}[script].main(words)
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """DCM, a teacher and its student, of one epoch each; the folder, and what was printed."""
    out = tmp_path_factory.mktemp("two")
    for split, counts in (
        ("train", {"ape": 8, "bat": 6, "cow": 6}),
        ("test", {"ape": 5, "bat": 3, "cow": 3}),
    ):
        make_folder(out / "data/CIFAR100" / split, counts)
    (out / "two.py").write_text(SCRIPT)
    hsakd = "--epochs 1 --data data --batch-size 6 --checkpoint-dir checkpoint --out ."
    lines = [
        (
            "DCM --net1 wrn_16_0.5 --net2 mobilenet32 --epochs 1 --batch_size 6 --nthread 0"
            " --dataroot data --save dcm"
        ),
        f"HSAKD teacher --arch wrn_10_0.5_aux --manual 1 {hsakd}",
        f"HSAKD student --tarch wrn_10_0.5_aux --arch resnet8_aux --tcheckpoint {TEACHER} {hsakd}",
    ]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            "two.py",
            *lines,
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        cwd=out,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_both_processes_have_the_same_weights_and_one_speaks(two):
    _, said = two
    assert said.count("2 processes") == 3
    assert said.count("same True, moved True") == 3


@pytest.mark.parametrize(
    ("net", "log", "name"),
    [
        ("dcm/net1.pth.tar", "dcm", "val_net1_top1_prec"),
        ("dcm/net2.pth.tar", "dcm", "val_net2_top1_prec"),
        (TEACHER, f"logs/{Path(TEACHER).parent.name}", "test_top1_prec"),
        (STUDENT, f"logs/{Path(STUDENT).parent.name}", "test_top1_prec"),
    ],
)
def test_every_test_image_counts_once_for_the_net_that_was_saved(two, net, log, name):
    out, _ = two
    (metrics,) = [json.loads(line) for line in (out / log / "metrics.jsonl").open()]
    hits = hits_of(out / net, {}, str(out / "data"))
    assert len(hits) == 11
    assert metrics[name] == pytest.approx(100 * hits.mean())


def test_the_authors_logs_are_written_once(two):
    out, _ = two
    assert (out / "dcm/log.txt").read_text().count("json_stats: ") == 1
    for path in (TEACHER, STUDENT):
        text = (out / "result" / f"{Path(path).parent.name}.txt").read_text()
        assert text.count("Args:Namespace(") == text.count("Epoch:0\t") == 1
