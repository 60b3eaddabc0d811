import copy
import os

import pytest
import torch

from tests.mistakes import check_line, refused
from utils import checkpoint, remarks
from utils.files import earlier
from utils.provenance import NetSource, Provenance
from utils.training import resume

SETTINGS = {
    "arch": "alexnet",
    "lr": 0.1,
    "epochs": 3,
    "alpha": [0.1, 0.1],
    "weights": None,
    "weight_decay": 1e-4,
}
SOURCE = Provenance(
    NetSource(sha256="aaaaaaaa11"), NetSource(sha256="bbbbbbbb22"), dataset="CUB200", split="train"
)


@pytest.fixture
def own(tmp_path):
    return tmp_path / "checkpoint_own.pth.tar"


@pytest.fixture
def stored(own):
    """The run's own checkpoint, of two epochs."""
    checkpoint.save(
        own, {"epoch": 2, "settings": SETTINGS, "source": SOURCE.to_record(), "state_dict": {}}
    )
    return own


def find(resumed, own, settings=SETTINGS, **options):
    return resume.find(resumed, own, copy.deepcopy(settings), source=SOURCE, **options)


# --- which checkpoint


@pytest.mark.parametrize("resumed", ["", "auto"])
@pytest.mark.parametrize("restart", [False, True])
def test_without_a_checkpoint_a_run_begins_anew(own, resumed, restart):
    assert find(resumed, own, restart=restart) is None


def test_auto_goes_on_with_the_runs_own(stored):
    assert find("auto", stored) == stored


def test_no_resume_begins_the_same_run_anew(stored):
    assert find("", stored) is None


@pytest.mark.parametrize("resumed", ["", "auto"])
def test_restart_begins_anew(stored, resumed):
    assert find(resumed, stored, restart=True) is None


def test_a_path_names_the_checkpoint(own, stored, tmp_path):
    other = tmp_path / "other.pth.tar"
    checkpoint.save(other, {"epoch": 1, "settings": SETTINGS | {"lr": 9.0}})
    assert find(str(other), own) == other
    assert find(str(other), own, restart=True) == other
    assert find(str(stored), stored) == stored


def test_a_path_without_a_file_is_named_at_once(own, tmp_path):
    with refused("nowhere.pth.tar"):
        find(str(tmp_path / "nowhere.pth.tar"), own)
    (tmp_path / "page.pth.tar").write_text("<html>")
    with refused("page.pth.tar"):
        find(str(tmp_path / "page.pth.tar"), own)


def test_a_path_to_what_was_made_of_other_features_is_refused(own, tmp_path):
    other = tmp_path / "other.pth.tar"
    checkpoint.save(other, {"epoch": 1, "source": SOURCE.reversed().to_record()})
    with refused("other.pth.tar", "--reverse"):
        find(str(other), own)
    assert resume.find(str(other), own, SETTINGS) == other  # a run that reads no features


# --- whether it is this run's


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.9),
        ("arch", "vgg16"),
        ("alpha", [0.1, 0.2]),
        ("weights", "cccccccc33"),
        ("epochs", 4),
        ("weight_decay", 0.0),
    ],
)
@pytest.mark.parametrize("resumed", ["", "auto"])
def test_another_setting_is_refused_with_both_values(stored, resumed, name, value):
    before = stored.read_bytes()
    with refused(stored, name, SETTINGS[name], value, "--suffix", "--restart"):
        find(resumed, stored, SETTINGS | {name: value})
    assert find(resumed, stored, SETTINGS | {name: value}, restart=True) is None
    assert stored.read_bytes() == before


def test_the_first_that_differs_is_named(stored):
    with refused("arch", "alexnet", "vgg16"):
        find("auto", stored, SETTINGS | {"lr": 0.9, "arch": "vgg16"})


def test_a_run_from_a_path_does_not_replace_another_runs_checkpoint_either(stored, tmp_path):
    other = tmp_path / "other.pth.tar"
    checkpoint.save(other, {"epoch": 1})
    with refused(stored, "lr", "0.1", "0.9"):
        find(str(other), stored, SETTINGS | {"lr": 0.9})


@pytest.mark.parametrize("resumed", ["", "auto"])
def test_other_features_are_refused_before_other_settings(stored, resumed):
    checkpoint.save(stored, checkpoint.load(stored) | {"source": SOURCE.reversed().to_record()})
    with refused(stored, "--reverse", "--suffix"):
        find(resumed, stored, SETTINGS | {"lr": 0.9})


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_a_run_may_be_extended_where_its_rates_do_not_depend_on_its_end(stored, epochs):
    assert find("auto", stored, SETTINGS | {"epochs": epochs}, extendable=True) == stored
    with refused("lr", "0.1", "0.9"):
        find("auto", stored, SETTINGS | {"epochs": epochs, "lr": 0.9}, extendable=True)


def test_what_is_not_recorded_is_not_compared(stored):
    assert find("auto", stored, SETTINGS | {"momentum": 0.5}) == stored
    # As earlier versions and the authors saved
    checkpoint.save(stored, {"epoch": 2, "state_dict": {}})
    assert find("auto", stored, SETTINGS | {"lr": 0.9}) == stored


def test_a_setting_younger_than_the_file_had_its_first_value_there(stored):
    assert find("auto", stored, SETTINGS | resume.YOUNGER) == stored
    assert resume.history({"epoch": 2, "settings": SETTINGS}, SETTINGS | resume.YOUNGER) == []
    for name in resume.YOUNGER:
        with refused(name, "0", "0.1"):
            find("auto", stored, SETTINGS | resume.YOUNGER | {name: 0.1})


def test_what_only_the_file_records_is_not_compared(stored):
    less = {name: value for name, value in SETTINGS.items() if name != "lr"}
    assert find("auto", stored, less) == stored


@pytest.mark.parametrize("resumed", ["", "auto"])
@pytest.mark.parametrize("size", [0, 100])
def test_a_damaged_checkpoint_of_its_own_needs_no_deleting(stored, resumed, size):
    os.truncate(stored, size)
    with refused(stored, "--restart"):
        find(resumed, stored)
    assert find(resumed, stored, restart=True) is None


def test_the_option_that_names_another_place_is_the_steps_own(stored):
    with refused("lr", "9", "--save", "--restart"):
        find("", stored, SETTINGS | {"lr": 9}, elsewhere="--save")


# --- the state before a damaged one


@pytest.fixture
def stored_twice(own):
    """The run's checkpoints of two epochs and of three."""
    for epoch in (2, 3):
        state = {"epoch": epoch, "settings": SETTINGS, "state_dict": {"w": torch.ones(9) * epoch}}
        checkpoint.save(own, state, keep=2)
    remarks.forget()
    return own


@pytest.mark.parametrize("size", [0, 100, 600])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(stored_twice, size, capsys):
    os.truncate(stored_twice, size)
    assert find("auto", stored_twice) == stored_twice
    assert checkpoint.load(stored_twice)["epoch"] == 2
    check_line(capsys.readouterr().out, stored_twice, f"{stored_twice.name}.1", 2)


def test_it_stays_without_resume_and_the_one_before_it_is_named(stored_twice):
    os.truncate(stored_twice, 100)
    before = stored_twice.read_bytes()
    with refused(stored_twice, f"{stored_twice}.1", "--restart"):
        find("", stored_twice)
    assert find("auto", stored_twice, restart=True) is None
    assert stored_twice.read_bytes() == before


def test_where_both_are_damaged_both_stay(stored_twice):
    for path in (stored_twice, earlier(stored_twice)):
        os.truncate(path, 100)
    with refused(stored_twice, "--restart"):
        find("auto", stored_twice)
    assert [path.stat().st_size for path in (stored_twice, earlier(stored_twice))] == [100, 100]


def test_the_newest_of_those_that_are_whole_is_taken(stored_twice):
    checkpoint.save(stored_twice, {"epoch": 4, "settings": SETTINGS}, keep=3)
    for path in (stored_twice, earlier(stored_twice)):
        os.truncate(path, 100)
    find("auto", stored_twice)
    assert checkpoint.load(stored_twice)["epoch"] == 2


def test_what_was_saved_together_goes_back_together(tmp_path, capsys):
    """The third file was saved at other times, and stays."""
    names = ("one", "two", "other")
    one, two, other = (tmp_path / f"{name}.pth.tar" for name in names)
    for epoch in (4, 5):
        checkpoint.save_together({one: {"epoch": epoch}, two: {"epoch": epoch}}, keep=2)
        checkpoint.save(other, {"epoch": epoch + 5}, keep=2)
    os.truncate(two, 100)
    remarks.forget()
    checkpoint.recover(one, two, other)
    assert [checkpoint.load(path)["epoch"] for path in (one, two, other)] == [4, 4, 10]
    check_line(capsys.readouterr().out, two, 4)


def test_a_state_within_an_epoch_is_named_with_its_step(tmp_path, capsys):
    path = tmp_path / "net.pth.tar"
    checkpoint.save(path, {"epoch": 6, "midway": {"epoch": 7, "step": 12}}, keep=2)
    checkpoint.save(path, {"epoch": 7}, keep=2)
    os.truncate(path, 100)
    remarks.forget()
    checkpoint.recover(path, first_epoch=0)
    check_line(capsys.readouterr().out, path, 7, 12)


# --- the other net of a pair


def test_a_twin_differs_in_its_seed_alone(tmp_path):
    own, settings = tmp_path / "checkpoint_b.pth.tar", SETTINGS | {"seed": 5}
    checkpoint.save(own, {"settings": settings})
    for name, others in (("a", {"lr": 9.0, "seed": 0}), ("c", {}), ("d", {"lr": 9.0})):
        checkpoint.save(tmp_path / f"checkpoint_{name}.pth.tar", {"settings": settings | others})
    # Of another step; an authors'
    for name, state in (("e", {"settings": {"seed": 0}}), ("f", {})):
        checkpoint.save(tmp_path / f"checkpoint_{name}.pth.tar", state)
    (tmp_path / "checkpoint_g.pth.tar").write_text("torn")
    checkpoint.save(tmp_path / "model_best_h.pth.tar", {"settings": settings | {"seed": 0}})
    assert resume.twin(own, settings) is None
    checkpoint.save(tmp_path / "checkpoint_i.pth.tar", {"settings": settings | {"seed": 0}})
    assert resume.twin(own, settings) == tmp_path / "checkpoint_i.pth.tar"


# --- what came before


def test_epochs_of_other_settings_stay_on_record():
    present = SETTINGS | {"epochs": 6}
    first = resume.history({"epoch": 3, "settings": SETTINGS}, present)
    assert first == [{"epoch": 3, "settings": SETTINGS}]
    longer = SETTINGS | {"epochs": 9}
    second = resume.history({"epoch": 5, "settings": present, "history": first}, longer)
    assert second == [*first, {"epoch": 5, "settings": present}]
    assert first == [{"epoch": 3, "settings": SETTINGS}]


def test_equal_settings_add_no_history():
    assert resume.history({}, SETTINGS) == []
    assert resume.history({"epoch": 2, "settings": dict(SETTINGS)}, SETTINGS) == []
    before = [{"epoch": 1, "settings": {"lr": 1.0}}]
    assert resume.history({"epoch": 2, "settings": SETTINGS, "history": before}, SETTINGS) == before
    assert resume.history({"epoch": 2, "history": before}, SETTINGS) == before


def test_what_a_checkpoint_records_can_be_read_again(own):
    checkpoint.save(
        own, {"epoch": 1, "settings": SETTINGS, "versions": resume.VERSIONS, "history": []}
    )
    state = checkpoint.load(own)
    assert state["versions"]["torch"] == torch.__version__
    assert {type(version) for version in state["versions"].values()} == {str}
    assert state["settings"] == SETTINGS
