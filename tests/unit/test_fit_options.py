from pathlib import Path

import pytest

from tests.mistakes import refuses
from utils import fit_options, options
from utils.fit_options import FitOptions, Kind, ReadOptions
from utils.option_groups import DataOptions, LayerOptions, OutputOptions
from utils.parser import Parser
from utils.provenance import NetSource, Provenance


@pytest.fixture
def parser():
    parser = Parser("A fit.")
    fit_options.add_source_options(parser)
    fit_options.add_family_options(parser)
    options.add_trans_net_options(parser)
    fit_options.add_budget_options(parser)
    options.add_training_options(
        parser,
        optim=None,
        lr=None,
        epochs=None,
        optims=("SGD", "Adam", "Muon"),
        momentum=None,
        weight_decay=None,
        fewest_epochs=0,
        logspace=2,
    )
    options.add_resume_options(parser)
    options.add_run_options(parser)
    options.add_output_options(parser)
    return parser


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], [(False, 3, 0), (True, 3, 0)]),
        (["--resume", "auto"], [(False, 3, 0), (True, 3, 0)]),
        (["--resume", "g.pth.tar"], [(False, 3, 0)]),
        (["--one_direction"], [(False, 3, 0)]),
        (["--one_direction", "--reverse"], [(True, 3, 0)]),
        (["--seed", "5", "--reverse"], [(True, 3, 5)]),
        (["--seeds", "7", "--one_direction"], [(False, 3, 7)]),
        (
            ["--layers", "1,2", "--seeds", "0,4", "--one_direction"],
            [(False, 1, 0), (False, 1, 4), (False, 2, 0), (False, 2, 4)],
        ),
        (
            ["--layers", "2,1", "--both_directions"],
            [(False, 2, 0), (False, 1, 0), (True, 2, 0), (True, 1, 0)],
        ),
    ],
)
def test_every_combination_is_a_trans_net(parser, words, expected):
    assert FitOptions.of(parser.parse_args(words)).kinds == expected


KNOWN = Provenance(dataset="digits", arch="resnet18", label="L", sample_num="")


@pytest.mark.parametrize(
    ("words", "kind", "name"),
    [
        ([], Kind(False, 3, 0), "LL"),
        (["--reverse", "--seeds", "7", "--suffix", "x"], Kind(True, 3, 7), "LL_x"),
        (["--layers", "1,2"], Kind(False, 2, 0), "LL_layers2"),
        (["--both_directions", "--suffix", "x"], Kind(False, 3, 0), "LL_x"),
        (["--both_directions", "--suffix", "x"], Kind(True, 3, 0), "LL_x_reverse"),
        (
            ["--seeds", "0,1", "--layers", "1,2", "--both_directions"],
            Kind(True, 2, 1),
            "LL_layers2_reverse_seed1",
        ),
    ],
)
def test_a_name_says_what_differs_within_a_run(parser, words, kind, name):
    args = parser.parse_args(words)
    found = FitOptions.of(args).place(OutputOptions.of(args), kind, KNOWN)
    assert found == Path(f"model_checkpoints/digits_resnet18/checkpoint_{name}.pth.tar")


def settings(args, kind):
    """What is recorded of a fit to features of 32 channels."""
    return FitOptions.of(args).settings(options.settings(args), kind, 32)


def test_alone_and_among_others_the_same_is_recorded(parser):
    together, alone = (
        parser.parse_args(words)
        for words in (
            ["--layers", "1,2,3", "--alpha", "0.1", "--both_directions", "--seeds", "0,1,2"],
            ["--layers", "3", "--alpha", "[0.1,0.1]", "--reverse", "--seeds", "2"],
        )
    )
    (kind,) = FitOptions.of(alone).kinds
    assert kind in FitOptions.of(together).kinds
    found = settings(together, kind)
    assert found == settings(alone, kind)
    assert (found["layers"], found["alpha"], found["reverse"]) == (3, [0.1, 0.1], True)
    assert (found["seed"], found["initial_seed"]) == (0, 2)


@pytest.mark.parametrize(
    ("words", "layers", "expected"),
    [
        ([], 3, [0.5, 0.5]),
        (["--alpha", "0.1"], 1, []),
        (["--alpha", "0.1"], 4, [0.1] * 3),
        (["--alpha", "[1,2]"], 3, [1, 2]),
    ],
)
def test_one_weight_counts_for_every_order(parser, words, layers, expected):
    assert FitOptions.of(parser.parse_args(words)).weights(layers) == expected


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["--alpha", "[0.1]"], ("--alpha", "1", "--layers 3", "2")),
        (["--alpha", "[1,1]", "--layers", "2,3"], ("--layers", "--alpha")),
        (["--epochs", "0"], ("--epochs 0", "--solve")),
        (["--seeds", "1,1"], ("--seeds",)),
        (["--layers", "2,2"], ("--layers",)),
        (["--both_directions", "--resume", "g.pth.tar"], ("2", "--resume auto")),
        (["--both_directions", "--one_direction"], ("--both_directions", "--one_direction")),
        (["--steps", "9", "--epochs", "3"], ("--epochs", "--steps")),
        (["--steps", "9", "--logspace", "1"], ("--logspace", "--steps")),
        (["--until", "converged"], ("--until converged", "--standardise", "--solve")),
        (
            ["--until", "converged", "--standardise", "--solve", "--no_reference"],
            ("--no_reference",),
        ),
        (["--tolerance", "0.1"], ("--tolerance", "--until converged")),
    ],
)
def test_contradictions_are_refused(parser, words, facts):
    refuses(lambda line: fit_options.check(parser, parser.parse_args(line)), words, *facts, code=2)


@pytest.mark.parametrize(
    "words",
    [["--both_directions", "--resume", "auto"], ["--resume", "g.pth.tar"], ["--seeds", "2"]],
)
def test_what_does_not_contradict_passes(parser, words):
    fit_options.check(parser, parser.parse_args(words))


FITTED = Provenance(NetSource("vgg", "l1", "a.pth"), NetSource("vgg", "l2", "b.pth"))


@pytest.mark.parametrize(
    ("words", "folder", "reverse", "has_val", "expected"),
    [
        ([], "f/train", False, True, "--convOut_path f"),
        ([], "f/train", True, False, "--convOut_path f/train --t_or_v train --reverse"),
        (
            ["--dataset", "digits", "--image_size", "64"],
            None,
            False,
            True,
            (
                "--net_in a.pth --net_tar b.pth --layer l1 --layer2 l2 --dataset digits"
                " --image_size 64 --resize torch"
            ),
        ),
        (
            [],
            None,
            True,
            False,
            (
                "--net_in a.pth --net_tar b.pth --layer l1 --layer2 l2 --dataset CUB200"
                " --image_size 224 --resize torch --t_or_v train"
            ),
        ),
    ],
)
def test_a_fit_is_measured_on_what_it_was_fitted_to(
    parser, words, folder, reverse, has_val, expected
):
    args = parser.parse_args(words)
    groups = (ReadOptions.of(args), LayerOptions.of(args), DataOptions.of(args))
    folder = folder and Path(folder)
    found = fit_options.again(parser, *groups, FITTED, folder, reverse=reverse, has_val=has_val)
    assert " ".join(map(str, found)) == expected


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["--net_A", "a"], ("--net_A", "--net_B")),
        (
            ["--net_A", "a", "--net_B", "b", "--convOut_path", "f"],
            ("--convOut_path", "--net_A"),
        ),
        (["--net_A", "a", "--net_B", "b", "--fc"], ("--fc", "--conv_layer")),
        (["--cache_images", "off"], ("--cache_images",)),
        (["--augment", "zero4"], ("--augment",)),
    ],
)
def test_features_are_stored_or_computed_and_not_both(parser, words, facts):
    refuses(lambda line: fit_options.check(parser, parser.parse_args(line)), words, *facts, code=2)


SOLVED = ["--standardise", "--solve"]
RELEASED = {
    "optim": "Adam",
    "lr": 1e-4,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "epochs": 800,
    "steps": None,
}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], RELEASED),
        (["--standardise"], RELEASED),
        ([*SOLVED, "--match", "penultimate"], RELEASED),
        ([*SOLVED, "--lr", "0.1"], RELEASED | {"lr": 0.1}),
        ([*SOLVED, "--epochs", "0"], RELEASED | {"epochs": 0}),
        (["--optim", "SGD"], RELEASED | {"optim": "SGD"}),
        (
            SOLVED,
            {
                "optim": "Muon",
                "lr": 0.04,
                "momentum": 0.95,
                "weight_decay": 0,
                "epochs": None,
                "steps": 400,
            },
        ),
        ([*SOLVED, "--until", "converged"], {"optim": "Muon", "steps": 200, "epochs": None}),
        ([*SOLVED, "--until", "converged", "--steps", "50", "--lr", "1"], {"lr": 1, "steps": 50}),
        (["--steps", "50"], {"optim": "Muon", "lr": 0.04, "epochs": None, "steps": 50}),
        (
            ["--steps", "50", "--optim", "Adam"],
            {"optim": "Adam", "lr": 3e-3, "momentum": 0.9, "weight_decay": 1e-4},
        ),
    ],
)
def test_the_budget_is_that_of_the_released_code_or_in_steps(parser, words, expected):
    args = parser.parse_args(words)
    fit_options.check(parser, args)
    assert {name: getattr(args, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("words", "layers", "channels", "expected"),
    [
        ([], 3, 32, 0),
        (SOLVED, 3, 8, 16),
        (SOLVED, 3, 32, 64),
        (SOLVED, 2, 512, 64),
        (SOLVED, 1, 32, 0),
        ([*SOLVED, "--hidden", "0"], 3, 32, 0),
        (["--hidden", "7"], 3, 32, 7),
        (["--hidden", "7"], 1, 32, 0),
    ],
)
def test_deep_solved_fits_have_spare_channels(parser, words, layers, channels, expected):
    assert FitOptions.of(parser.parse_args(words)).hidden_channels(layers, channels) == expected


def test_what_the_released_procedure_records_knows_nothing_of_steps(parser):
    args = parser.parse_args(["--one_direction"])
    fit_options.check(parser, args)
    (kind,) = FitOptions.of(args).kinds
    found = settings(args, kind)
    assert not {"steps", "until", "tolerance"} & set(found) and found["hidden"] == 0


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        ([], Kind(False, 3, 0), "3 layers, A → B"),
        (["--seeds", "0,1"], Kind(True, 1, 1), "1 layer, B → A, seed 1"),
    ],
)
def test_lines_name_their_fit(parser, words, kind, said):
    assert FitOptions.of(parser.parse_args(words)).title(kind) == said
