import pytest

import ConvOutput
import Training
import Training_TransNet
import Variance
from utils import options, remarks
from utils.errors import InputError
from utils.parser import Parser


@pytest.fixture
def parser():
    parser = Parser("A step.")
    options.add_data_options(parser, batch_size=7)
    options.add_layer_options(parser, default="30")
    options.add_second_layer_options(parser)
    options.add_training_options(parser, optim="SGD", lr=0.5, epochs=3)
    options.add_resume_options(parser)
    options.add_run_options(parser)
    options.add_output_options(parser)
    options.add_ignored_options(parser, "--fine_tune")
    return parser


def refused(parser, words, capsys):
    """What a parser says of words that it refuses."""
    with pytest.raises(SystemExit) as exit_:
        parser.parse_args(words)
    assert exit_.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--learning-rate", "0.25"], "lr", 0.25),
        (["--weight-decay", "0.25"], "weight_decay", 0.25),
        (["--wd=1e-3"], "weight_decay", 1e-3),
        (["--logspace"], "logspace", 2.0),
        (["--logspace", "0.5"], "logspace", 0.5),
        (["-j", "0"], "workers", 0),
        (["-p", "3"], "print_freq", 3),
        (["--batch-size=9"], "batch_size", 9),
        (["-b", "9"], "batch_size", 9),
        (["--resume", "auto"], "resume", "auto"),
        (["--restart"], "restart", True),
        (["--split", "random"], "sub_sampler_split", "random"),
        (["--device_ids", "[]"], "device_ids", []),
        (["--train-path", "a-b/c-d"], "train_path", "a-b/c-d"),
        (["--suffix", "lr-2_sd0"], "suffix", "lr-2_sd0"),
    ],
)
def test_documented_spellings(parser, words, name, value):
    assert getattr(parser.parse_args(words), name) == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "0"], "--epochs: expected a whole number of at least 1, got '0'"),
        (["--lr", "-0.1"], "--lr/--learning_rate: expected a number of at least 0, got '-0.1'"),
        (["--lr", "nan"], "expected a number of at least 0, got 'nan'"),
        (["--decay_factor", "0"], "--decay_factor: expected a number above 0, got '0'"),
        (["--batch_size", "0"], "-b/--batch_size: expected a whole number of at least 1"),
        (["--image_size", "7"], "--image_size: expected a whole number of at least 8, got '7'"),
        (["--conv_layer", "-1"], "--conv_layer: expected a whole number of at least 0, got '-1'"),
        (
            ["--device_ids", "[-1]"],
            "in a list such as [1,1]: expected a whole number of at least 0, got '-1'",
        ),
        (
            ["--device_ids", "[0.5,1]"],
            "in a list such as [1,1]: expected a whole number of at least 0, got '0.5'",
        ),
        (["--suffix", "a/b"], "--suffix: expected a name, not a path, got 'a/b'"),
        (["--dataset", "../x"], "--dataset: expected a name, not a path"),
        (["--out", ""], "--out: expected a path, got nothing"),
        (["--seed", "-1"], "--seed: expected a whole number of at least 0"),
        (["--split", "last"], "--split: invalid choice: 'last'"),
        (["--workers", "many"], "-j/--workers: expected a whole number of at least 0, got 'many'"),
    ],
)
def test_what_is_out_of_range_is_named_with_its_option(parser, words, message, capsys):
    assert message in refused(parser, words, capsys)


def test_a_step_may_allow_no_epochs():
    parser = Parser("")
    options.add_training_options(parser, optim="Adam", lr=1e-5, epochs=5, fewest_epochs=0)
    assert parser.parse_args(["--epochs", "0"]).epochs == 0


def test_help_is_grouped_and_shows_defaults(parser):
    text = " ".join(parser.format_help().split())
    for group in ("data:", "training:", "layer:", "run:", "output:", "going on:"):
        assert group in text
    assert "images of a step, over all GPUs (default: 7)" in text
    assert (
        "(default: None)" not in text
        and "(default: False)" not in text
        and "(default: )" not in text
    )
    assert "--fine_tune" not in text


def test_the_data_folder_comes_from_the_environment(monkeypatch):
    def data_root():
        parser = Parser("")
        options.add_data_options(parser, batch_size=1)
        return parser.parse_args([]).data_root

    assert data_root() == "data"
    monkeypatch.setenv("KC_DATA", "/somewhere")
    assert data_root() == "/somewhere"
    monkeypatch.setenv("KC_DATA", "")
    assert data_root() == "data"


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
    assert options.both_layers(parser.parse_args(words)) == (first, second)


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
    args = parser.parse_args(words)
    options.fill(args, *records)
    assert (args.dataset, args.image_size) == expected


@pytest.mark.parametrize(
    ("records", "said"),
    [([{"image_size": 64}], "64"), ([{"image_size": 64}, {}, {"image_size": 48}], "48 and 64")],
)
def test_a_size_that_no_network_was_trained_at_is_refused(parser, records, said):
    args = parser.parse_args(["--image_size", "32"])
    message = (
        f"the network was trained at {said} pixels, --image_size says 32; leave the option out"
    )
    with pytest.raises(InputError, match=message):
        options.fill(args, *records)


def test_networks_of_several_sizes_need_a_choice(parser):
    args = parser.parse_args([])
    with pytest.raises(
        InputError, match="trained at 32 and 64 pixels, and images have one size: choose"
    ):
        options.fill(args, {"image_size": 64}, {"image_size": 32})


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
    args = parser.parse_args(["--dataset", "folder", *words])
    assert options.data_name(args) == name
    options.fill(args)
    assert args.name == name
    assert options.data_name(args) == name


def test_a_folder_in_the_folder_that_one_is_in_has_that_ones_name(parser, tmp_path, monkeypatch):
    (tmp_path / "pets").mkdir()
    monkeypatch.chdir(tmp_path / "pets")
    assert (
        options.data_name(parser.parse_args(["--dataset", "folder", "--train_path", "train"]))
        == "pets"
    )


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
    args = parser.parse_args(words)
    options.fill(args, {"dataset": "folder", "name": "cows"})
    assert (args.dataset, args.name, options.data_name(args)) == ("folder", name, name)


def test_a_named_data_set_has_its_own_name(parser):
    args = parser.parse_args(["--train_path", "pets/train"])
    assert options.data_name(args) == "CUB200"
    options.fill(args, {"dataset": "digits"})
    assert (options.data_name(args), args.name) == ("digits", None)


# --- what is recorded


def test_settings_are_what_changes_the_result(parser):
    words = [
        "--lr",
        "0.25",
        "--seed",
        "3",
        "--device_ids",
        "[0,1]",
        "--suffix",
        "x",
        "--resume",
        "auto",
        "-j",
        "1",
    ]
    args = parser.parse_args(words)
    found = options.settings(args)
    assert set(found) == {
        "dataset",
        "name",
        "image_size",
        "sample_num",
        "sub_sampler_split",
        "batch_size",
        "fc",
        "optim",
        "lr",
        "momentum",
        "weight_decay",
        "epochs",
        "logspace",
        "epoch_step",
        "decay_factor",
        "seed",
        "amp",
        "tf32",
        "augment",
        "normalisation",
        "channels_last",
    }
    assert (found["lr"], found["seed"], found["batch_size"]) == (0.25, 3, 7)
    assert options.settings(parser.parse_args(["--lr", "0.25", "--seed", "3"])) == found


@pytest.mark.parametrize(
    "words", [["--out", "b"], ["--restart"], ["--save_epoch", "9"], ["--gpu", "1"], ["--compile"]]
)
def test_options_that_change_nothing_are_not_recorded(parser, words):
    assert options.settings(parser.parse_args(words)) == options.settings(parser.parse_args([]))


def test_the_first_half_is_what_no_option_means(parser):
    nothing, first, at_random = (
        options.settings(parser.parse_args(words))
        for words in ([], ["--split", "first"], ["--split", "random"])
    )
    assert nothing == first != at_random


def test_fc_without_a_number_has_no_effect(parser, capsys):
    for words in (
        ["--fc", "--conv_layer", "1"],
        ["--fc", "--layer", "a", "--conv_layer2", "1"],
        ["--layer", "a"],
        [],
    ):
        options.check_layers(parser, parser.parse_args(words))
    for words in (["--fc"], ["--fc", "--layer", "a"]):
        with pytest.raises(SystemExit):
            options.check_layers(parser, parser.parse_args(words))
        assert (
            "error: --fc has no effect without --conv_layer, whose number it counts"
            in capsys.readouterr().err
        )


def test_a_step_replaces_settings_of_its_own(parser):
    args = parser.parse_args([])
    assert options.settings(args, weights="cafe", lr=9) == options.settings(args) | {
        "weights": "cafe",
        "lr": 9,
    }
    assert args.lr == 0.5


@pytest.mark.parametrize(
    "words", [["--fine-tune"], ["--world-size", "4"], ["--dist-url=tcp://localhost"], ["--model"]]
)
def test_old_switches_are_accepted_and_say_so_in_one_line(parser, words, capsys):
    remarks.forget()
    args = parser.parse_args([*words, "--epochs", "5"])
    assert args.epochs == 5
    name = words[0].partition("=")[0].replace("-", "_").replace("__", "--", 1)
    (line,) = capsys.readouterr().out.splitlines()
    assert name in line
    assert not {"fine_tune", "world_size", "dist_url", "model"} & set(vars(args))


# --- options that do nothing in a step


@pytest.mark.parametrize(
    ("step", "line"),
    [
        (ConvOutput, "--resume1 A --resume2 B"),
        (Variance, "--net_in A --net_tar B --transnet G"),
    ],
)
def test_a_step_that_augments_no_image_ignores_the_option_and_says_so(step, line, capsys):
    parser, words = step.build_parser(), line.split()
    assert "--augment" not in parser.format_help()
    remarks.forget()
    args = parser.parse_args([*words, "--augment", "zero4"])
    (said,) = capsys.readouterr().out.splitlines()
    assert "--augment" in said
    assert vars(args) == vars(parser.parse_args(words))


def test_a_fit_does_not_show_what_it_refuses():
    assert "--augment" not in Training_TransNet.build_parser().format_help()
    assert "--augment" in Training.build_parser().format_help()
