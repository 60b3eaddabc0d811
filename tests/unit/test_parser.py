import argparse
import math

import pytest

from tests.mistakes import refused, refuses
from utils import remarks
from utils.parser import (
    MOST,
    Ignored,
    Parser,
    list_of,
    plain_name,
    real,
    result_file,
    some_path,
    whole,
)


@pytest.fixture
def parser():
    parser = Parser("A step.\n\nOf two paragraphs.", "python Step.py --size 3")
    parser.prog = "Step.py"
    parser.add_argument("--note", default="", help="what to say")
    parser.add_argument("--batch_size", "-b", type=whole(1), default=7, help="images of a step")
    parser.add_argument("--layer2", type=whole(0), help="of net B")
    parser.add_argument("--alpha", type=list_of(real()), default=[0.5, 0.5])
    parser.add_argument("--reverse", action="store_true", help="the other way")
    parser.add_argument("--old", action=Ignored)
    return parser


# --- the parser


@pytest.mark.parametrize(
    "words",
    [
        ["--batch-size", "9"],
        ["--batch_size", "9"],
        ["--batch-size=9"],
        ["--batch_size=9"],
        ["-b", "9"],
    ],
)
def test_dashes_and_underscores_are_one(parser, words):
    assert parser.parse_args(words).batch_size == 9


def test_the_command_line_is_read_by_default(parser, monkeypatch):
    monkeypatch.setattr("sys.argv", ["Step.py", "--batch-size", "9"])
    assert parser.parse_args().batch_size == 9


@pytest.mark.parametrize("words", [["--note", "my-own-note"], ["--note=my-own-note"]])
def test_values_keep_their_dashes(parser, words):
    assert parser.parse_args(words).note == "my-own-note"


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        # No abbreviations: they change when options are added
        (["--batch"], ("--batch",)),
        (["--nonsense"], ("--nonsense",)),
        (["--batch_size", "many"], ("--batch_size/-b", "1", "'many'")),
        (["--batch_size"], ("--batch_size/-b",)),
    ],
)
def test_a_mistake_is_one_line(parser, words, facts, capsys):
    refuses(parser.parse_args, words, "Step.py", *facts, "--help", code=2)
    assert capsys.readouterr().out == ""


def test_help_shows_defaults_that_say_something_the_example_and_the_lines(parser):
    text = parser.format_help()
    assert "A step.\n\nOf two paragraphs.\n" in text
    assert text.endswith("example:\n  python Step.py --size 3\n")
    assert "images of a step (default: 7)" in text
    for said in ("of net B", "the other way", "what to say"):
        assert f"{said}\n" in text
    assert "--old" not in text
    assert "example" not in Parser("A step.").format_help()


def test_the_default_of_a_step_stands_in_place_of_what_is_said_of_others():
    parser = Parser("A step.")
    parser.add_argument("--size", type=int, help="pixels; default: the checkpoint's, or 224")
    assert "pixels; default: the checkpoint's, or 224\n" in parser.format_help()
    parser.set_defaults(size=32)
    assert "pixels (default: 32)\n" in parser.format_help()


def test_old_options_are_accepted_and_said_to_be_ignored(parser, capsys):
    for words in (["--old"], ["--old", "3"], ["--old=3"]):
        remarks.forget()
        assert "old" not in parser.parse_args(words)
        (line,) = capsys.readouterr().out.splitlines()
        assert "--old" in line
        parser.parse_args(words)  # as a step does, which parses before and after its imports
        assert capsys.readouterr().out == ""
    assert "old" not in parser.parse_args([])


# --- options without effect


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--note", "x"], "note"),
        (["--layer2", "0"], "layer2"),  # 0 is given, though it is as false as nothing
        (["--reverse"], "reverse"),
        (["--alpha", "[0.5]"], "alpha"),
        (["--reverse", "--layer2", "3"], "layer2"),
    ],
)
def test_an_option_without_effect_is_refused_with_the_reason(parser, words, name):
    def check(words):
        names, reason = ["note", "layer2", "alpha", "reverse"], "beside --convOut_path"
        parser.refuse_without_effect(parser.parse_args(words), names, reason)

    refuses(check, words, "Step.py", f"--{name}", "beside --convOut_path", code=2)


def test_what_was_not_given_is_not_refused(parser):
    parser.refuse_without_effect(
        parser.parse_args([]), ["note", "layer2", "alpha", "reverse"], "here"
    )
    parser.refuse_without_effect(
        parser.parse_args(["--reverse"]), ["note", "layer2", "alpha"], "here"
    )


# --- what a next step is told again


def test_options_can_be_said_again(parser):
    given = parser.parse_args(["--batch-size", "9", "--note", "a b", "--layer2", "0"])
    words = parser.again(["layer2", "note", "batch_size", "alpha"], given)
    assert words == ["--layer2", "0", "--note", "a b", "--batch_size", "9"]
    again = parser.parse_args(words)
    assert vars(again) == vars(given)
    assert parser.again(["layer2", "note", "batch_size", "alpha"], parser.parse_args([])) == []
    given.layer2, given.note = None, "filled in"
    assert parser.again(["layer2", "note"], given) == ["--note", "filled in"]


# --- types


@pytest.mark.parametrize(("text", "value"), [("3", 3), ("+4", 4), (" 5 ", 5), ("007", 7)])
def test_whole_numbers(text, value):
    assert whole(3)(text) == value


def test_whole_numbers_may_be_negative():
    assert whole(-1)("-1") == -1


@pytest.mark.parametrize("text", ["2", "-3", "3.0", "3e2", "three", "", "1_000", "0x10"])
def test_what_is_no_whole_number_of_the_range(text):
    with refused("3", repr(text), kind=argparse.ArgumentTypeError):
        whole(3)(text)


@pytest.mark.parametrize("text", ["8", "+9", "1" + "0" * 50, "9" * 5000])
def test_a_whole_number_above_the_range_is_named_and_cut_short(text):
    with refused(7, text[:40], kind=argparse.ArgumentTypeError) as error:
        whole(3, 7)(text)
    assert len(str(error.value)) < 120
    assert whole(3, 7)("7") == 7


def test_every_whole_number_has_a_bound():
    assert whole(0)(str(MOST)) == MOST
    with refused(MOST, MOST + 1, kind=argparse.ArgumentTypeError):
        whole(0)(str(MOST + 1))


def test_none_may_be_the_one_number_below_the_range():
    some = whole(19, or_zero=True)
    assert [some(text) for text in ("0", "19")] == [0, 19]
    for text in ("1", "18", "-1"):
        with refused("0", 19, text, kind=argparse.ArgumentTypeError):
            some(text)


@pytest.mark.parametrize(("text", "value"), [("0", 0.0), ("1e-3", 1e-3), ("2", 2.0), (" .5 ", 0.5)])
def test_real_numbers(text, value):
    assert real()(text) == value
    assert type(real()(text)) is float


@pytest.mark.parametrize("text", ["-1e-9", "nan", "inf", "-inf", "1e999", "one", ""])
def test_what_is_no_real_number_of_the_range(text):
    with refused("0", repr(text), kind=argparse.ArgumentTypeError):
        real()(text)


def test_a_bound_may_be_excluded():
    assert real(above=0)("1e-9") == 1e-9
    assert real(above=1.5)("2") == 2
    for text in ("0", "-1"):
        with refused("0", repr(text), kind=argparse.ArgumentTypeError):
            real(above=0)(text)
    with refused("0.5", "'0.4'", kind=argparse.ArgumentTypeError):
        real(0.5)("0.4")
    assert real(-math.pi)("-3") == -3


@pytest.mark.parametrize("text", ["[0.1,8.0]", "0.1,8.0", "[0.1, 8.0]", " [0.1,8]", "[0.1,8.0,]"])
def test_lists_with_and_without_brackets(text):
    assert list_of(float)(text) == [0.1, 8.0]


def test_other_lists():
    assert list_of(whole(0))("[0,1]") == [0, 1]
    assert list_of(whole(0))("3") == [3]
    assert list_of(str)("[a,b]") == ["a", "b"]


@pytest.mark.parametrize("text", ["[]", "", ","])
def test_a_list_is_empty_only_where_it_may_be(text):
    assert list_of(float, empty=True)(text) == []
    with refused("[1,1]", repr(text), kind=argparse.ArgumentTypeError):
        list_of(float)(text)


@pytest.mark.parametrize(
    ("text", "entry"), [("[0.5,1]", "0.5"), ("[a]", "a"), ("0;1", "0;1"), ("[1,-1]", "-1")]
)
def test_a_list_of_something_else_names_the_entry_and_what_it_should_be(text, entry):
    with refused("[1,1]", "0", repr(entry), kind=argparse.ArgumentTypeError):
        list_of(whole(0))(text)
    with refused("[1,1]", "'[x]'", kind=argparse.ArgumentTypeError):
        list_of(int)("[x]")


def test_paths_are_anything_but_nothing():
    assert some_path("../a b") == "../a b"
    for text in ("", "  "):
        with refused(repr(text), kind=argparse.ArgumentTypeError):
            some_path(text)


def test_names_are_no_paths():
    for text in ("lr-2_sd0", "", "a.b", "..a"):
        assert plain_name(text) == text
    for text in ("a/b", "/", "..", ".", "../x"):
        with refused(repr(text), kind=argparse.ArgumentTypeError):
            plain_name(text)


def test_a_command_line_goes_without_some_options():
    words = ["--resume", "auto", "--seed=3", "--lr", "1", "--start-epoch", "2", "-e"]
    assert Parser("A step.").without(words, ("--resume", "--seed", "--start_epoch")) == [
        "--lr",
        "1",
        "-e",
    ]


def test_a_switch_is_said_again_without_a_value():
    step = Parser("A step.")
    step.add_argument("--tf32", action="store_true")
    assert step.again(["tf32"], step.parse_args(["--tf32"])) == ["--tf32"]
    assert step.again(["tf32"], step.parse_args([])) == []


def test_neutral_options_are_named_where_they_are_declared():
    step = Parser("A step.")
    step.add_argument("--lr", default=0.1)
    group = step.add_argument_group("run")
    group.add_argument("--gpu", neutral=True)
    one_of = group.add_mutually_exclusive_group()
    one_of.add_argument("--quiet", dest="loud", action="store_false", neutral=True)
    one_of.add_argument("--loud", action="store_true")
    step.set_neutral("layer")
    args = step.parse_args(["--gpu", "1"])
    assert args.neutral == {"gpu", "loud", "layer"}
    assert set(vars(args)) == {"lr", "gpu", "loud"}


def test_neutral_options_of_a_command_are_the_steps():
    step = Parser("A step.")
    commands = step.add_subparsers(dest="command", required=True)
    commands.add_parser("fit", description="Fit.").add_argument("--gpu", neutral=True)
    commands.add_parser("draw", description="Draw.").add_argument("--size", neutral=True)
    assert step.parse_args(["fit"]).neutral == {"gpu"}


def test_results_without_an_ending_go_to_standard_output():
    assert result_file()("-") == "-"
    with refused(".png", "-", kind=argparse.ArgumentTypeError):
        result_file(".png")("-")
