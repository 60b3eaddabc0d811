"""BornAgain.py: whole series of ResNet-18 at 32 pixels."""

import json
import shlex

import pytest
import torch

import BornAgain
import Training
from models.classifiers import load_classifier
from tests.e2e.road import truncate
from tests.mistakes import check_line, refused
from utils import checkpoint
from utils.data.batches import Preprocessing
from utils.data.images import ImageData
from utils.files import sha256
from utils.normalisation import NORMALISATIONS

pytestmark = pytest.mark.e2e
COMMON = "--image_size 32 --batch_size 8 --lr 0.02 --val_epoch 1"
SERIES = "-a resnet18 -g 2 --epochs 2 --seed 3 --suffix s --lambd 0.5 --lambd_end 0.05 --tau 4"


def run(script, photos, out, line):
    """Run a script on the photos, as a command line."""
    paths = [
        "--dataset",
        "folder",
        "--name",
        "folder",
        "--train_path",
        photos / "train",
        "--val_path",
        photos / "val",
        "--out",
        out,
    ]
    return script.main([*shlex.split(f"{COMMON} {line}"), *map(str, paths)])


def saved(out, name):
    return checkpoint.load(out / "model_checkpoints" / f"checkpoint_folder_resnet18_{name}.pth.tar")


def lines_of(out, name):
    return [
        json.loads(line)
        for line in (out / "logs" / f"folder_resnet18_{name}" / "metrics.jsonl").open()
    ]


def assert_same_weights(first, second):
    assert first["state_dict"].keys() == second["state_dict"].keys()
    assert all(
        torch.equal(value, second["state_dict"][key]) for key, value in first["state_dict"].items()
    )


@pytest.fixture(scope="module")
def series(photos, tmp_path_factory):
    """Generations 0 and 1 of two epochs each."""
    out = tmp_path_factory.mktemp("series")
    run(BornAgain, photos, out, SERIES)
    return out


def test_a_series_writes_a_checkpoint_and_a_log_for_each_generation(series):
    files = sorted(path.name for path in (series / "model_checkpoints").glob("*.tar"))
    assert files == [f"checkpoint_folder_resnet18_s_gen{g}.pth.tar" for g in (0, 1)]
    first, second = saved(series, "s_gen0"), saved(series, "s_gen1")
    assert (first["settings"]["seed"], second["settings"]["seed"]) == (13, 23)
    assert first["settings"]["teacher"] is None
    assert second["settings"]["teacher"] == sha256(series / "model_checkpoints" / files[0])
    assert second["data"] == {
        "dataset": "folder",
        "name": "folder",
        "sample_num": "",
        "classes": ["blue", "green", "red"],
        "image_size": 32,
        "resize": "torch",
        "normalisation": NORMALISATIONS["imagenet"],
    }
    assert load_classifier(series / "model_checkpoints" / files[1])(
        torch.zeros(1, 3, 32, 32)
    ).shape == (1, 3)
    assert not torch.equal(first["state_dict"]["fc.weight"], second["state_dict"]["fc.weight"])


def test_the_log_has_both_parts_of_the_loss_and_lambda(series):
    alone, taught = lines_of(series, "s_gen0"), lines_of(series, "s_gen1")
    assert "KD" not in alone[0]
    assert [line["epoch"] for line in taught] == [1, 2]
    assert [line["lambda"] for line in taught] == pytest.approx([0.5, 0.05])
    for line in taught:
        assert line["Loss"] == pytest.approx(line["CE"] + line["lambda"] * line["KD"])
        assert line["KD"] > 0
        assert {"top1_prec", "val_top1_prec", "lr", "seconds"} <= line.keys()


def test_generation_0_is_a_classifier_as_training_makes_it(series, photos, tmp_path):
    run(Training, photos, tmp_path, "-a resnet18 --epochs 2 --seed 13 --suffix t")
    assert_same_weights(saved(series, "s_gen0"), saved(tmp_path, "t"))


def test_the_same_command_again_trains_nothing(series, photos, epochs, capsys):
    before = {path: path.read_bytes() for path in (series / "model_checkpoints").iterdir()}
    run(BornAgain, photos, series, SERIES)
    assert epochs.trained == []
    assert {path: path.read_bytes() for path in before} == before
    assert "generation 1 is trained already" in capsys.readouterr().out


@pytest.mark.parametrize("stop", [1, 3])
def test_a_stopped_series_goes_on_to_the_same_weights(
    series, photos, tmp_path, epochs, stop, capsys
):
    epochs.stop_at.append(stop)
    with pytest.raises(SystemExit) as stopped:
        run(BornAgain, photos, tmp_path, SERIES)
    assert stopped.value.code == 130
    last = capsys.readouterr().out.splitlines()[-1]
    generation = f"checkpoint_folder_resnet18_s_gen{stop // 2}.pth.tar"
    check_line(last, tmp_path / "model_checkpoints" / generation, "1", "2")
    epochs.stop_at.clear()
    run(BornAgain, photos, tmp_path, SERIES)
    assert epochs.trained == [0, 1, 0, 1]  # of both generations, none twice
    for generation in ("s_gen0", "s_gen1"):
        resumed, uninterrupted = saved(tmp_path, generation), saved(series, generation)
        assert_same_weights(resumed, uninterrupted)
        assert resumed["acc1"] == uninterrupted["acc1"]
        assert [line["Loss"] for line in lines_of(tmp_path, generation)] == [
            line["Loss"] for line in lines_of(series, generation)
        ]
        assert [line["epoch"] for line in lines_of(tmp_path, generation)] == [1, 2]


@pytest.mark.parametrize(
    ("other", "facts"), [("--lr 0.5", ("lr", 0.02, 0.5)), ("--epochs 3", ("epochs", 2, 3))]
)
def test_a_series_of_other_options_is_not_continued(series, photos, epochs, other, facts):
    with refused(
        "checkpoint_folder_resnet18_s_gen0.pth.tar",
        *facts,
        "--suffix",
        "--restart",
        kind=SystemExit,
    ):
        run(BornAgain, photos, series, f"{SERIES} {other}")
    assert epochs.trained == []


def test_a_longer_series_keeps_its_first_generations(photos, tmp_path, epochs):
    """More epochs by steps go on; rates or a λ that change over all epochs do not (above)."""
    run(BornAgain, photos, tmp_path, "-a resnet18 -g 1 --epochs 1")
    first = tmp_path / "model_checkpoints/checkpoint_folder_resnet18_gen0.pth.tar"
    before = sha256(first)
    run(BornAgain, photos, tmp_path, "-a resnet18 -g 2 --epochs 1")
    assert epochs.trained == [0, 0]
    run(BornAgain, photos, tmp_path, "-a resnet18 -g 1 --epochs 2")
    assert epochs.trained == [0, 0, 1]
    with refused("teacher", sha256(first), before, kind=SystemExit):
        run(BornAgain, photos, tmp_path, "-a resnet18 -g 2 --epochs 2")


def test_a_damaged_generation_is_replaced_by_restart(photos, tmp_path, epochs):
    line = "-a resnet18 -g 1 --epochs 1"
    run(BornAgain, photos, tmp_path, line)
    truncate(tmp_path / "model_checkpoints/checkpoint_folder_resnet18_gen0.pth.tar")
    with refused("checkpoint_folder_resnet18_gen0.pth.tar", "--restart", kind=SystemExit):
        run(BornAgain, photos, tmp_path, line)
    run(BornAgain, photos, tmp_path, f"{line} --restart")
    assert epochs.trained == [0, 0] and saved(tmp_path, "gen0")["epoch"] == 1


def test_start_gen_1_takes_the_teacher_as_generation_0(series, photos, tmp_path):
    teacher = series / "model_checkpoints" / "checkpoint_folder_resnet18_s_gen0.pth.tar"
    # the teacher's checkpoint says what its students are
    run(BornAgain, photos, tmp_path, f"--start_gen 1 -g 3 --epochs 1 --seed 10 --resume {teacher}")
    files = sorted(path.name for path in (tmp_path / "model_checkpoints").iterdir())
    assert files == [
        "checkpoint_folder_resnet18_gen1.pth.tar",
        "checkpoint_folder_resnet18_gen2.pth.tar",
    ]
    first, second = saved(tmp_path, "gen1"), saved(tmp_path, "gen2")
    assert (first["settings"]["seed"], second["settings"]["seed"]) == (20, 30)
    assert first["settings"]["teacher"] == sha256(teacher)
    assert second["settings"]["teacher"] == sha256(tmp_path / "model_checkpoints" / files[0])


def test_start_gen_0_with_a_teacher_trains_a_generation_0_that_it_teaches(series, photos, tmp_path):
    teacher = series / "model_checkpoints" / "checkpoint_folder_resnet18_s_gen1.pth.tar"
    run(BornAgain, photos, tmp_path, f"-g 1 --epochs 1 --resume {teacher}")
    first = saved(tmp_path, "gen0")
    assert (first["settings"]["seed"], first["settings"]["teacher"]) == (10, sha256(teacher))
    assert "KD" in lines_of(tmp_path, "gen0")[0]


def test_a_later_start_without_a_teacher_takes_the_generation_before(photos, tmp_path):
    run(BornAgain, photos, tmp_path, "-a resnet18 -g 1 --epochs 1")
    run(BornAgain, photos, tmp_path, "-a resnet18 --start_gen 1 -g 2 --epochs 1 --resume auto")
    before = tmp_path / "model_checkpoints" / "checkpoint_folder_resnet18_gen0.pth.tar"
    assert saved(tmp_path, "gen1")["settings"]["teacher"] == sha256(before)
    with refused(
        "checkpoint_folder_resnet18_gen2.pth.tar",
        "checkpoint_folder_resnet18_gen1.pth.tar",
        kind=SystemExit,
    ):
        run(BornAgain, photos, tmp_path, "-a resnet18 --start_gen 3 -g 4 --epochs 1")


def test_students_of_another_architecture_than_the_teachers(series, photos, tmp_path):
    teacher = series / "model_checkpoints" / "checkpoint_folder_resnet18_s_gen0.pth.tar"
    line = f"-a resnet18 --student_arch resnet8 --start_gen 1 -g 3 --epochs 1 --resume {teacher}"
    run(BornAgain, photos, tmp_path, line)
    first, second = (
        tmp_path / "model_checkpoints" / f"checkpoint_folder_resnet8_gen{generation}.pth.tar"
        for generation in (1, 2)
    )
    taught_by = [checkpoint.load(path)["settings"]["teacher"] for path in (first, second)]
    assert taught_by == [sha256(teacher), sha256(first)]
    assert load_classifier(second).arch == "resnet8"
    with refused(teacher, "resnet18", "--arch", "resnet8", kind=SystemExit):
        run(
            BornAgain,
            photos,
            tmp_path,
            f"-a resnet8 --start_gen 1 -g 2 --epochs 1 --resume {teacher}",
        )


def test_augmented_images_ask_the_teacher_every_time(series, photos, tmp_path, monkeypatch, capsys):
    line = f"--start_gen 1 -g 2 --epochs 1 --gpu_teacher 7 --resume {series}/model_checkpoints/"
    line += "checkpoint_folder_resnet18_s_gen0.pth.tar"
    run(BornAgain, photos, tmp_path / "stored", line)
    assert "--gpu_teacher has no effect" in capsys.readouterr().out
    monkeypatch.setattr(ImageData, "augments", True)
    run(BornAgain, photos, tmp_path / "live", line)
    assert "logits of the teacher" not in capsys.readouterr().out
    stored, live = (lines_of(tmp_path / kind, "gen1")[0] for kind in ("stored", "live"))
    assert stored["Loss"] == pytest.approx(live["Loss"], rel=1e-5)
    assert stored["KD"] == pytest.approx(live["KD"], rel=1e-5)


class Always(torch.nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, _images):
        return self.logits


def test_the_loss_is_cross_entropy_plus_lambda_times_the_teachers():
    logits, taught = (
        torch.tensor([[1.0, -1.0], [0.5, 2.0]]),
        torch.tensor([[0.0, 0.0], [3.0, -1.0]]),
    )
    pixels, targets, indices = (
        torch.zeros(2, 3, 2, 2, dtype=torch.uint8),
        torch.tensor([0, 1]),
        torch.tensor([1, 0]),
    )
    loss, metrics = BornAgain.distil(
        Always(logits),
        pixels,
        targets,
        indices,
        preprocess=Preprocessing(*NORMALISATIONS["imagenet"]),
        epoch=0,
        teacher=lambda _, i: taught[i],
        lambd=0.25,
        tau=4.0,
    )
    task = torch.nn.functional.cross_entropy(logits, targets)
    soft = -((taught[indices] / 4).softmax(1) * (logits / 4).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, task + 0.25 * 16 * soft)
    torch.testing.assert_close(metrics["KD"], 16 * soft)


def test_a_teacher_of_other_classes_is_refused(series, photos, tmp_path):
    path = series / "model_checkpoints" / "checkpoint_folder_resnet18_s_gen0.pth.tar"
    state = checkpoint.load(path)
    state["data"]["classes"] = ["red", "green", "blue"]
    checkpoint.save(tmp_path / "other.pth.tar", state)
    with refused("0", "blue", "red", kind=SystemExit):
        run(BornAgain, photos, tmp_path, f"-g 1 --epochs 1 --resume {tmp_path}/other.pth.tar")


def test_the_documented_command_line():
    args = BornAgain.build_parser().parse_args(
        shlex.split(
            "--save_epoch 50 --start_gen 1 --seed 10 --resume T --device_ids [0,1] --gpu_teacher 2"
            " -a vgg16_bn --epochs 300 --lr 0.01 --epoch_step 60 --logspace 0 --tau 1 --lambd 0.5"
            " --lambd_end 0.5"
        )
    )
    assert (args.start_gen, args.generations, args.resume, args.device_ids, args.gpu_teacher) == (
        1,
        5,
        "T",
        [0, 1],
        2,
    )
    assert (args.arch, args.epochs, args.lr, args.logspace, args.tau, args.lambd) == (
        "vgg16_bn",
        300,
        0.01,
        0,
        1,
        0.5,
    )
    defaults = BornAgain.build_parser().parse_args([])
    assert (defaults.lr, defaults.start_gen, defaults.optim, defaults.lambd_end) == (
        1e-3,
        0,
        "SGD",
        0.5,
    )
