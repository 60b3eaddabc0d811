"""Groups of options: what they take from parsed ones and from checkpoints, and what follows."""

import dataclasses

import pytest

from tests.mistakes import refused
from tests.unit.step_options import parsed
from utils import option_groups, options
from utils.option_groups import (
    DataOptions,
    Group,
    LayerOptions,
    OutputOptions,
    RunOptions,
    TrainingOptions,
)
from utils.parser import Parser


@pytest.fixture
def parser():
    parser = Parser("A step.")
    options.add_data_options(parser, batch_size=7, two_nets=True)
    options.add_layer_options(parser, default="30")
    options.add_second_layer_options(parser)
    options.add_training_options(parser, optim="SGD", lr=0.5, epochs=3, short=True)
    options.add_resume_options(parser)
    options.add_run_options(parser)
    options.add_output_options(parser)
    return parser


GROUPS = (DataOptions, LayerOptions, OutputOptions, RunOptions, TrainingOptions)


@pytest.mark.parametrize("group", GROUPS)
def test_every_field_of_a_group_is_an_option_of_that_name(parser, group):
    """A field that no option fills would be its default for ever."""
    assert {field.name for field in dataclasses.fields(group)} <= set(vars(parser.parse_args([])))


def test_every_shared_option_is_in_a_group(parser):
    grouped = {field.name for group in GROUPS for field in dataclasses.fields(group)}
    assert set(vars(parser.parse_args([]))) <= grouped


def test_every_group_is_tested():
    assert set(Group.__subclasses__()) >= set(GROUPS)
    shared = {kind for kind in vars(option_groups).values() if isinstance(kind, type)}
    assert {kind for kind in shared if issubclass(kind, Group)} == {Group, *GROUPS}


def test_a_group_has_the_parsed_values_and_others_before_them(parser):
    args = parser.parse_args(["--out", "o", "--resume", "auto", "--restart"])
    assert OutputOptions.of(args) == OutputOptions("o", "", "auto", True, None)
    assert OutputOptions.of(args, resume="g", suffix="x") == OutputOptions("o", "x", "g", True)


def test_an_option_that_a_step_lacks_is_as_the_group_has_it():
    assert OutputOptions.of(parsed()) == OutputOptions(".", "", "", False, None)
    assert OutputOptions.of(Parser("").parse_args([])) == OutputOptions()


def test_what_is_said_of_two_nets_can_be_exchanged(parser):
    words = ["--normalisation1", "half", "--normalisation2", "cifar10", "--channels_last", "A"]
    args = parser.parse_args(words)
    data, layers = DataOptions.of(args), LayerOptions.of(args)
    assert (data.normalisation1, data.normalisation2) == ("half", "cifar10")
    exchanged = data.exchanged()
    assert (exchanged.normalisation1, exchanged.normalisation2) == ("cifar10", "half")
    assert layers.exchanged().channels_last == "B" and layers.exchanged().exchanged() == layers
    assert (
        data.names_normalisation and not DataOptions.of(parser.parse_args([])).names_normalisation
    )


def test_the_folders_of_images_are_those_that_are_named(parser):
    args = parser.parse_args(["--data_root", "d", "--val_path", "v"])
    assert DataOptions.of(args).folders == {"data_root": "d", "val_path": "v"}


def test_net_bs_layer_is_hinted_at_where_none_is_named(parser):
    assert "--layer2" in LayerOptions.of(parser.parse_args(["--layer", "a"])).second_hint
    for words in (["--layer2", "a"], ["--conv_layer2", "0"]):
        layers = LayerOptions.of(parser.parse_args(words))
        assert layers.second_hint == "" and layers.names_second


def test_images_are_resized_as_an_option_says_or_as_they_were_in_training(parser):
    unsaid, said = parser.parse_args([]), parser.parse_args(["--resize", "pillow"])
    before = {"dataset": "digits", "image_size": 64}  # Pillow alone resized
    assert DataOptions.of(unsaid).resize == DataOptions.of(unsaid, {}).resize == "torch"
    assert DataOptions.of(said).resize == "pillow"
    assert DataOptions.of(unsaid, {}, before, before | {"resize": "torch"}).resize == "pillow"
    assert DataOptions.of(unsaid, before | {"resize": "torch"}, before).resize == "torch"
    assert DataOptions.of(said, before | {"resize": "torch"}).resize == "pillow"
    # A Trans-Net of the authors does not say it.
    assert DataOptions.of(unsaid, {"resize": None}, before).resize == "pillow"


def test_settings_have_what_a_group_filled_in(parser):
    args = parser.parse_args([])
    data = DataOptions.of(args, {"dataset": "digits", "image_size": 64})
    assert options.settings(args)["image_size"] is None
    found = options.settings(args, data)
    assert (found["dataset"], found["image_size"]) == ("digits", 64)
    assert set(found) == set(options.settings(args))


# --- layers


@pytest.mark.parametrize(
    ("words", "first", "second"),
    [
        ([], (None, None, False, None, None), (None, None, False, None, None)),
        (["--conv_layer", "8", "--fc"], (None, 8, True, None, None), (None, 8, True, None, None)),
        (
            ["--conv_layer", "0", "--image_size", "32"],
            (None, 0, False, 32, None),
            (None, 0, False, 32, None),
        ),
        (
            ["--conv_layer", "8", "--conv_layer2", "3"],
            (None, 8, False, None, None),
            (None, 3, False, None, None),
        ),
        (
            ["--conv_layer", "8", "--conv_layer2", "0"],
            (None, 8, False, None, None),
            (None, 0, False, None, None),
        ),
        (
            ["--layer", "a.1", "--layer2", "b.2"],
            ("a.1", None, False, None, None),
            ("b.2", None, False, None, None),
        ),
        (["--layer", "a.1"], ("a.1", None, False, None, None), ("a.1", None, False, None, None)),
        (
            ["--layer", "a.1", "--conv_layer2", "3"],
            ("a.1", None, False, None, None),
            (None, 3, False, None, None),
        ),
        (
            ["--layer", "a", "--channels_last", "A"],
            ("a", None, False, None, True),
            ("a", None, False, None, False),
        ),
        (
            ["--channels_last", "none"],
            (None, None, False, None, False),
            (None, None, False, None, False),
        ),
        (
            ["--layer2", "b", "--channels_last", "both"],
            (None, None, False, None, True),
            ("b", None, False, None, True),
        ),
    ],
)
def test_the_layers_of_both_nets(parser, words, first, second):
    layers = LayerOptions.of(parser.parse_args(words))
    names = ("name", "conv_layer", "fc", "image_size", "channels_last")
    assert layers.of_net("A") == dict(zip(names, first))
    assert layers.of_net("B") == dict(zip(names, second))


# --- what no option says


@pytest.mark.parametrize(
    ("words", "records", "expected"),
    [
        ([], [{"dataset": "digits", "image_size": 64}], ("digits", 64)),
        ([], [{}, {"dataset": "digits", "image_size": 64}], ("digits", 64)),
        ([], [{"dataset": "digits"}, {"dataset": "mix320", "image_size": 64}], ("digits", 64)),
        (["--dataset", "mix320"], [{"dataset": "digits", "image_size": 64}], ("mix320", 64)),
        (["--image_size", "64"], [{"dataset": "digits", "image_size": 64}], ("digits", 64)),
        (["--image_size", "32"], [{"image_size": 64}, {"image_size": 32}], ("CUB200", 32)),
        (["--image_size", "32"], [{}], ("CUB200", 32)),
        ([], [{}], ("CUB200", 224)),
        ([], [], ("CUB200", 224)),
    ],
)
def test_what_no_option_says_comes_from_the_checkpoints(parser, words, records, expected):
    data = DataOptions.of(parser.parse_args(words), *records)
    assert (data.dataset, data.image_size) == expected


@pytest.mark.parametrize(
    ("records", "sizes"),
    [([{"image_size": 64}], [64]), ([{"image_size": 64}, {}, {"image_size": 48}], [48, 64])],
)
def test_a_size_that_no_network_was_trained_at_is_refused(parser, records, sizes):
    args = parser.parse_args(["--image_size", "32"])
    with refused(*sizes, "--image_size", "32"):
        DataOptions.of(args, *records)


def test_networks_of_several_sizes_need_a_choice(parser):
    args = parser.parse_args([])
    with refused("32", "64", "--image_size"):
        DataOptions.of(args, {"image_size": 64}, {"image_size": 32})


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--train_path", "pets/train", "--val_path", "x"], "pets"),
        (["--train_path", "pets/val/"], "pets"),
        (["--train_path", "pets/test"], "pets"),
        (["--train_path", "pets"], "pets"),
        (["--train_path", "pets/training"], "training"),
        (["--val_path", "farm/val"], "farm"),
        (["--train_path", "pets/train", "--name", "cows"], "cows"),
        (["--name", "cows"], "cows"),
        ([], "folder"),
    ],
)
def test_a_folder_is_called_by_its_name_or_as_it_is(parser, words, name):
    data = DataOptions.of(parser.parse_args(["--dataset", "folder", *words]))
    assert data.name == data.label == name


def test_a_folder_in_the_folder_that_one_is_in_has_that_ones_name(parser, tmp_path, monkeypatch):
    (tmp_path / "pets").mkdir()
    monkeypatch.chdir(tmp_path / "pets")
    words = ["--dataset", "folder", "--train_path", "train"]
    assert DataOptions.of(parser.parse_args(words)).label == "pets"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "cows"),
        (["--train_path", "cows/train"], "cows"),
        # So that what was made of cows is not taken for them
        (["--train_path", "horses/train"], "horses"),
        (["--val_path", "horses/val"], "horses"),
        (["--train_path", "elsewhere/train", "--name", "cows"], "cows"),
    ],
)
def test_a_folder_is_called_as_the_options_say_or_else_its_checkpoint(parser, words, name):
    data = DataOptions.of(parser.parse_args(words), {"dataset": "folder", "name": "cows"})
    assert (data.dataset, data.name, data.label) == ("folder", name, name)


def test_a_named_data_set_has_its_own_name(parser):
    args = parser.parse_args(["--train_path", "pets/train"])
    assert DataOptions.of(args).label == "CUB200"
    data = DataOptions.of(args, {"dataset": "digits"})
    assert (data.label, data.name) == ("digits", None)
