import pytest

import ConvOutput
import Training
import Training_TransNet
import Variance
from tests.mistakes import refuses
from utils import options, remarks
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
        "resize",
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


def test_fc_without_a_number_has_no_effect(parser):
    for words in (
        ["--fc", "--conv_layer", "1"],
        ["--fc", "--layer", "a", "--conv_layer2", "1"],
        ["--layer", "a"],
        [],
    ):
        options.check_layers(parser, parser.parse_args(words))
    for words in (["--fc"], ["--fc", "--layer", "a"]):
        refuses(
            lambda words: options.check_layers(parser, parser.parse_args(words)),
            words,
            "--fc",
            "--conv_layer",
            code=2,
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
