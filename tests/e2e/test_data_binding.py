"""A run is bound to its images: what became of them is named,
and what is drawn for each depends on no worker.
"""

import shutil

import pytest
import torch

import ConvOutput
import Training
import Training_TransNet
from tests.e2e.road import change, contents, run
from tests.mistakes import check_line, check_some_line, refused
from tests.unit.data.test_contents import CHANGES
from tests.unit.photos import make_folder
from utils import checkpoint

pytestmark = pytest.mark.e2e
LINE = "--arch resnet8 --image_size 16 -b 4 --lr 0.01 --val_epoch 1 -j 0"
OWN = "model_checkpoints/checkpoint_d_resnet8.pth.tar"
FEATURES = "--layer layer2.0.add -j 0"


def words(folder, out=None):
    paths = "--train_path", folder / "d/train", "--val_path", folder / "d/val"
    return "--dataset", "folder", *paths, "--out", out or folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A net of one epoch, its features and a Trans-Net; only to be copied."""
    folder = tmp_path_factory.mktemp("bound")
    make_folder(folder / "d/train", {"a": 4, "b": 3})
    make_folder(folder / "d/val", {"a": 2, "b": 2}, first_seed=30)
    run(Training, f"{LINE} --epochs 1", *words(folder))
    nets = ("--resume1", folder / OWN, "--resume2", folder / OWN)
    run(ConvOutput, f"{FEATURES} --t_or_v both", *nets, *words(folder))
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """The same, moved: all files have other times."""
    return shutil.copytree(finished, tmp_path / "copied", copy_function=shutil.copyfile)


def features_again(folder, *more):
    nets = ("--resume1", folder / OWN, "--resume2", folder / OWN)
    run(ConvOutput, f"{FEATURES} --t_or_v train", *nets, *words(folder), *more)


@pytest.mark.parametrize("kind", CHANGES)
def test_changed_images_are_named_at_resume_and_by_a_second_conv_output(copied, capsys, kind):
    edit, names = CHANGES[kind]
    edit(copied / "d/train")
    before = contents(copied)
    facts = "Training.py", copied / OWN, "train", "1", kind, *names, "--suffix", "--restart"
    with refused(*facts, kind=SystemExit):
        run(Training, f"{LINE} --epochs 2 --resume auto", *words(copied))
    with refused("1", kind, *names, kind=SystemExit):
        features_again(copied)
    assert contents(copied) == before
    features_again(copied, "--restart")
    assert "features already" not in capsys.readouterr().out
    run(Training, f"{LINE} --epochs 1 --restart", *words(copied))
    run(Training, f"{LINE} --epochs 2 --resume auto", *words(copied))


def test_a_folder_that_was_moved_is_the_same(copied):
    run(Training, f"{LINE} --epochs 2 --resume auto", *words(copied))
    assert checkpoint.load(copied / OWN)["epoch"] == 2


def test_features_of_a_moved_folder_are_there_already(copied, capsys):
    features_again(copied)
    check_some_line(capsys.readouterr().out, copied / "convOuts")


def test_what_records_no_images_is_compared_with_nothing(copied):
    change(copied / OWN, images={})
    CHANGES["edited"][0](copied / "d/train")
    run(Training, f"{LINE} --epochs 2 --resume auto", *words(copied))
    assert checkpoint.load(copied / OWN)["epoch"] == 2


def test_a_trans_net_goes_on_with_features_of_the_same_images_alone(copied):
    folder = next((copied / "convOuts").glob("*/*"))
    line = (
        f"--convOut_path {folder} --layers 1 --lr 0.001 -b 4 --validate --val_epoch 1"
        " --save_epoch 1"
    )
    run(Training_TransNet, f"{line} --epochs 1", "--out", copied)
    CHANGES["edited"][0](copied / "d/train")
    features_again(copied, "--restart")
    with refused("edited", "1", "a/01.jpg", kind=SystemExit):
        run(Training_TransNet, f"{line} --epochs 1 --resume auto", "--out", copied)


@pytest.fixture
def crops(tmp_path):
    """A data set whose images are cropped at random while they are decoded."""
    make_folder(tmp_path / "data/TinyImageNet/train", {"a": 5, "b": 4})
    make_folder(tmp_path / "data/TinyImageNet/test", {"a": 2, "b": 2})
    return "--dataset", "TinyImageNet", "--data_root", tmp_path / "data"


def test_random_crops_depend_on_no_worker_and_survive_an_interruption(crops, tmp_path, interrupt):
    line = "--arch alexnet --image_size 64 -b 3 --lr 0.01 --epochs 2"  # with dropout
    states = []
    for name, workers in (("none", 0), ("two", 2), ("resumed", 2)):
        out = ("--out", tmp_path / name)
        if name == "resumed":
            interrupt(Training, f"{line} -j {workers}", *crops, *out)
        run(Training, f"{line} -j {workers} --resume auto", *crops, *out)
        path = tmp_path / name / "model_checkpoints/checkpoint_TinyImageNet_alexnet.pth.tar"
        states.append(checkpoint.load(path)["state_dict"])
    for other in states[1:]:
        assert all(torch.equal(value, other[name]) for name, value in states[0].items())


def test_the_best_accuracy_is_of_a_file_of_this_run(copied, capsys):
    change(copied / OWN, best_acc1=99.5, acc1=99.5)
    run(Training, f"{LINE} --epochs 2 --suffix B --resume {copied / OWN}", *words(copied))
    best = checkpoint.load(copied / "model_checkpoints/model_best_d_resnet8_B.pth.tar")
    assert best["acc1"] == best["best_acc1"] < 99.5
    assert f"best accuracy {best['acc1']:.2f} %" in capsys.readouterr().out


def test_a_last_batch_of_one_is_refused_before_images_are_decoded(finished, tmp_path, capsys):
    line = "--arch mobilenet_v2 --image_size 32 -b 3 --epochs 1 -j 0"
    with refused("Training.py", "7", "3", "BatchNorm", "--batch_size", "4", kind=SystemExit):
        run(Training, line, *words(finished, tmp_path))
    assert "ready" not in capsys.readouterr().out and not list(tmp_path.rglob("*.pth.tar"))


def test_any_seed_is_taken(finished, tmp_path):
    run(Training, f"{LINE} --epochs 1 --seed {10**25}", *words(finished, tmp_path))
    assert checkpoint.load(tmp_path / OWN)["settings"]["seed"] == 10**25


def test_a_data_set_is_called_as_its_folder_is_and_not_two_dots(finished, tmp_path, monkeypatch):
    (finished / "d/scripts").mkdir(exist_ok=True)
    monkeypatch.chdir(finished / "d/scripts")
    paths = "--train_path ../train --val_path ../val"
    run(Training, f"{LINE} --epochs 1 --dataset folder {paths}", "--out", tmp_path)
    assert (tmp_path / OWN).exists()


def test_small_files_are_said_to_be_enlarged(finished, tmp_path, capsys):
    run(Training, f"{LINE} --image_size 100 --epochs 1", *words(finished, tmp_path))
    output = capsys.readouterr().out
    (line,) = (line for line in output.splitlines() if "enlarged" in line)
    check_line(line, "train", "100")
