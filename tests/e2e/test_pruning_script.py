"""Pruning.py: a ResNet-18 at 32 pixels, compressed."""

import json
import shlex

import pytest
import torch

import Pruning
import Training
from models.classifiers import load_classifier
from models.pruning import prunable_weights
from tests.mistakes import refused
from utils import checkpoint
from utils.data.batches import AUGMENTATIONS, augment
from utils.files import sha256
from utils.pixels import normalise
from utils.training.classification import classify

pytestmark = pytest.mark.e2e
PRUNING = "--s_conv 0.5 --s_fc 1 --epochs 2 --lr 0.01 --batch_size 8 --val_epoch 1 --suffix sd0"
NAME = "checkpoint_folder_resnet18_sd0_pruned0.5-1"


@pytest.fixture(scope="module")
def source(photos, tmp_path_factory):
    """A trained classifier's checkpoint."""
    out = tmp_path_factory.mktemp("source")
    line = (
        "-a resnet18 --dataset folder --name folder --image_size 32 --batch_size 8 --epochs 1"
        f" --seed 4 --out {out}"
    )
    Training.main(
        [*line.split(), "--train_path", str(photos / "train"), "--val_path", str(photos / "val")]
    )
    return out / "model_checkpoints" / "checkpoint_folder_resnet18.pth.tar"


def compress(source, photos, out, line):
    paths = {
        "--resume": source,
        "--train_path": photos / "train",
        "--val_path": photos / "val",
        "--out": out,
    }
    return Pruning.main(
        [
            *shlex.split(f"{line} --name folder"),
            *(str(word) for pair in paths.items() for word in pair),
        ]
    )


@pytest.fixture(scope="module")
def compressed(source, photos, tmp_path_factory):
    """The folder of one compressed net, with shared weights:
    two epochs of retraining and two of the centroids.
    """
    out = tmp_path_factory.mktemp("compressed")
    compress(source, photos, out, f"{PRUNING} --share_bits 2")
    return out


def weights(path):
    return {
        name: weight.detach()
        for name, (weight, _) in prunable_weights(load_classifier(path)).items()
    }


def test_images_are_normalised_as_the_nets_and_augmented_as_the_option_says(
    photos, tmp_path, monkeypatch
):
    # Constants so far from ImageNet's that a net which is read by those is another one
    options = "--normalisation 0.9,0.9,0.9,0.05,0.05,0.05 --augment zero4"
    line = f"-a resnet8 --dataset folder --name folder --image_size 32 -b 8 --epochs 3 {options}"
    paths = ["--train_path", str(photos / "train"), "--val_path", str(photos / "val")]
    Training.main([*line.split(), *paths, "--lr", "0.05", "--out", str(tmp_path)])
    source = tmp_path / "model_checkpoints" / "checkpoint_folder_resnet8.pth.tar"
    seen = {True: [], False: []}  # by whether the net is trained

    def spied(net, images, targets, indices, *, preprocess):
        seen[net.training].append((images.clone(), indices, preprocess(images, indices)))
        return classify(net, images, targets, indices, preprocess=preprocess)

    monkeypatch.setattr(Pruning, "classify", spied)
    line = "--s_conv 0.5 --epochs 2 --val_epoch 1 --batch_size 8 --lr 0.01 --augment zero4"
    (report,) = compress(source, photos, tmp_path, line)

    # The accuracy of the net before is the one that its own training measured.
    assert report["accuracy_percent"]["before"] == checkpoint.load(source)["acc1"]
    constants = ((0.9,) * 3, (0.05,) * 3)
    for images, _, read in seen[False]:
        assert torch.equal(read, normalise(images, *constants))
    augmentation = AUGMENTATIONS["zero4"]
    for step, (images, indices, read) in enumerate(seen[True]):
        cropped = augment(
            images, indices, epoch=step // 3, seed=0, padding=augmentation.padding, mode="zero"
        )
        assert not torch.equal(cropped, images)
        assert torch.equal(read, normalise(cropped, *constants))
    assert len(seen[True]) == 6


def test_a_compressed_net_is_an_ordinary_checkpoint_and_a_report(source, photos, tmp_path, capsys):
    (returned,) = compress(source, photos, tmp_path, PRUNING)
    files = sorted(path.name for path in (tmp_path / "model_checkpoints").iterdir())
    assert files == [f"{NAME}.json", f"{NAME}.pth.tar", f"{NAME}.pth.tar.1"]
    report = json.loads((tmp_path / "model_checkpoints" / f"{NAME}.json").read_text())
    assert report == returned

    state, of_source = (
        checkpoint.load(tmp_path / "model_checkpoints" / files[1]),
        checkpoint.load(source),
    )
    assert state["state_dict"].keys() == of_source["state_dict"].keys()
    assert (state["model"], state["data"], state["arch"]) == (
        of_source["model"],
        of_source["data"],
        "resnet18",
    )
    assert state["epoch"] == 2

    before, after = weights(source), weights(tmp_path / "model_checkpoints" / files[1])
    for row in report["layers"]:
        name = f"{row['layer']}.weight"
        s = 1 if row["layer"] == "fc" else 0.5
        assert row["threshold"] == pytest.approx(s * before[name].std(correction=0).item())
        assert torch.equal(after[name] != 0, before[name].abs() > row["threshold"])
        assert row["kept"] == after[name].count_nonzero() < row["weights"] == after[name].numel()
        assert not torch.equal(after[name][after[name] != 0], before[name][after[name] != 0])
    assert len(report["layers"]) == len(before) == 21
    assert report["removed"] == sum(int((weight == 0).sum()) for weight in after.values())
    assert report["parameters"] == sum(
        parameter.numel() for parameter in load_classifier(source).parameters()
    )
    assert report["removed_percent"] == pytest.approx(
        100 * report["removed"] / report["parameters"]
    )
    assert report["source"] == {"path": str(source), "sha256": sha256(source)}

    accuracy = report["accuracy_percent"]
    assert list(accuracy) == ["before", "pruned", "retrained"]
    assert accuracy["before"] == pytest.approx(of_source["acc1"])
    assert accuracy["retrained"] == state["acc1"]
    printed = capsys.readouterr().out
    (whole,) = [line.split() for line in printed.splitlines() if line.startswith("all parameters")]
    kept = report["parameters"] - report["removed"]
    assert whole[2:] == [
        f"{report['parameters']:,}",
        f"{kept:,}",
        f"{report['removed_percent']:.2f}",
    ]
    assert f"before {accuracy['before']:.2f}, pruned {accuracy['pruned']:.2f}" in printed
    log = [
        json.loads(line)
        for line in (tmp_path / "logs/folder_resnet18_sd0_pruned0.5-1/metrics.jsonl").open()
    ]
    assert [line["epoch"] for line in log] == [1, 2]
    assert log[1]["val_top1_prec"] == accuracy["retrained"]


def test_shared_weights_have_few_values_and_keep_their_zeros(source, photos, compressed, tmp_path):
    shared = weights(compressed / "model_checkpoints" / f"{NAME}-2bit.pth.tar")
    report = json.loads((compressed / "model_checkpoints" / f"{NAME}-2bit.json").read_text())
    before = weights(source)
    for row in report["layers"]:
        weight = shared[f"{row['layer']}.weight"]
        assert 1 < len(weight[weight != 0].unique()) <= 4
        assert torch.equal(weight != 0, before[f"{row['layer']}.weight"].abs() > row["threshold"])
    assert list(report["accuracy_percent"]) == [
        "before",
        "pruned",
        "retrained",
        "shared",
        "fine-tuned",
    ]
    log = [
        json.loads(line)
        for line in (compressed / "logs/folder_resnet18_sd0_pruned0.5-1-2bit/metrics.jsonl").open()
    ]
    assert [line["epoch"] for line in log] == [1, 2, 3, 4]


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_stopped_run_goes_on_to_the_same_weights(
    source, photos, compressed, tmp_path, epochs, stop
):
    epochs.stop_at.append(stop)
    with pytest.raises(SystemExit) as stopped:
        compress(source, photos, tmp_path, f"{PRUNING} --share_bits 2")
    assert stopped.value.code == 130
    epochs.stop_at.clear()
    (report,) = compress(source, photos, tmp_path, f"{PRUNING} --share_bits 2")
    assert epochs.trained == [0, 1, 2, 3]
    resumed, uninterrupted = (
        checkpoint.load(out / "model_checkpoints" / f"{NAME}-2bit.pth.tar")
        for out in (tmp_path, compressed)
    )
    for name, value in uninterrupted["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name
    assert report["accuracy_percent"] == uninterrupted["accuracy_percent"]
    assert report == json.loads(
        (compressed / "model_checkpoints" / f"{NAME}-2bit.json").read_text()
    )


def test_the_same_command_again_trains_nothing_and_another_is_refused(
    source, photos, compressed, epochs
):
    path = compressed / "model_checkpoints" / f"{NAME}-2bit.pth.tar"
    before = path.read_bytes()
    compress(source, photos, compressed, f"{PRUNING} --share_bits 2")
    assert epochs.trained == []
    assert path.read_bytes() == before
    with refused(path, "lr", "0.01", "0.5", "--restart", kind=SystemExit):
        compress(source, photos, compressed, f"{PRUNING} --share_bits 2 --lr 0.5")
    assert epochs.trained == [] and path.read_bytes() == before


def test_another_source_is_another_run_and_restart_replaces_it(source, photos, tmp_path, epochs):
    line = "--s_conv 0.5 --s_fc 1 --epochs 1 --batch_size 8"
    own = tmp_path / "out/model_checkpoints/checkpoint_folder_resnet18_pruned0.5-1.pth.tar"
    compress(source, photos, tmp_path / "out", line)
    other = tmp_path / "other.pth.tar"
    checkpoint.save(other, checkpoint.load(source) | {"acc1": 0.0})
    with refused("compressed", sha256(source), sha256(other), kind=SystemExit):
        compress(other, photos, tmp_path / "out", line)
    compress(other, photos, tmp_path / "out", f"{line} --restart")
    assert epochs.trained == [0, 0] and checkpoint.load(own)["settings"]["compressed"] == sha256(
        other
    )


def test_a_sweep_makes_one_net_for_each_factor_and_a_table(source, photos, tmp_path, capsys):
    line = "--s_conv 0.5 --s_fc 1 --epochs 0 --batch_size 8 --sweep [0,1,1.6]"
    reports = compress(source, photos, tmp_path, line)
    factors = [(report["options"]["s_conv"], report["options"]["s_fc"]) for report in reports]
    assert factors == [(0, 0), (0.5, 1), (0.8, 1.6)]
    removed = [report["removed_percent"] for report in reports]
    assert 0 <= removed[0] < 1e-4 < removed[1] < removed[2] < 100
    assert reports[0]["accuracy_percent"]["pruned"] == reports[0]["accuracy_percent"]["before"]
    *_, header, first, second, third, following = capsys.readouterr().out.splitlines()
    assert following.startswith(
        f"next: python ConvOutput.py --resume1 {tmp_path}/model_checkpoints/"
    )
    assert header.split() == ["s_conv", "s_fc", "removed,", "%", "before", "pruned", "checkpoint"]
    for line, report in zip((first, second, third), reports):
        assert line.split()[2] == f"{report['removed_percent']:.2f}"
        assert (tmp_path / "model_checkpoints" / line.split()[-1]).is_file()
    # Not retrained: what is left is as it was.
    path = tmp_path / "model_checkpoints" / "checkpoint_folder_resnet18_pruned0.8-1.6.pth.tar"
    for after, before in zip(weights(path).values(), weights(source).values()):
        assert torch.equal(after[after != 0], before[after != 0])


def test_a_weight_that_comes_back_is_noticed(source, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.optim.Optimizer, "register_step_post_hook", lambda *_: None)
    with refused("checkpoint_folder_resnet18_pruned0.5-1.pth.tar", kind=RuntimeError):
        compress(source, photos, tmp_path, "--s_conv 0.5 --epochs 1 --batch_size 8 --lr 0.01")


def test_a_compressed_net_can_be_compressed_further(compressed, photos, tmp_path):
    first = compressed / "model_checkpoints" / f"{NAME}-2bit.pth.tar"
    (report,) = compress(first, photos, tmp_path, "--s_conv 1.5 --s_fc 1.5 --epochs 0")
    second = tmp_path / "model_checkpoints" / report["checkpoint"]
    for before, after in zip(weights(first).values(), weights(second).values()):
        assert not after[before == 0].any()
    assert (
        report["removed"] > json.loads((first.parent / f"{NAME}-2bit.json").read_text())["removed"]
    )


def test_a_layer_that_lost_everything_is_named(source, photos, tmp_path, capsys):
    compress(source, photos, tmp_path, "--s_conv 0.1 --s_fc 100 --epochs 0")
    assert capsys.readouterr().out.count("nothing is left of fc: its threshold is too high") == 1


def test_defaults():
    args = Pruning.build_parser().parse_args(
        ["--resume", "net", "--share-bits", "5", "--s-fc", "0.8"]
    )
    assert (args.s_conv, args.s_fc, args.epochs, args.lr, args.share_bits, args.sweep) == (
        0.2,
        0.8,
        20,
        1e-4,
        5,
        [1.0],
    )
