"""The argument parser of every script, and the types of its options.

What is out of range ends with one line.
"""

import argparse
import copy
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from utils.errors import InputError
from utils.files import STANDARD_OUTPUT, check_writable
from utils.presence import (
    check_architecture,
    check_checkpoint,
    check_feature_folder,
    check_file,
    check_image_folder,
    check_run_folder,
    check_source,
)
from utils.remarks import remark

PICTURES = (".png", ".svg", ".pdf")
# The bounds of numbers that have no closer one: what is above is a slip, and would fill the memory
# or never end. `whole` and `real` refuse it before anything is read.
MOST = 1_000_000  # epochs, steps, images of a batch
MOST_RESAMPLES = 100_000  # of a bootstrap or a permutation test
MOST_PROCESSES = 1024
LARGEST_IMAGE = 8192  # pixels to a side: such an image takes 0.8 GB as float32
FEWEST_PERMUTATIONS = 19  # for a level of 0.05, which is 1 of 20
DIGITS = 40  # of a number that is read at all
LARGEST_SEED = 10**DIGITS - 1  # any: libraries get as many bits of it as they take


PlainNamespace = argparse.Namespace  # as checkpoints of other programs hold it


class Namespace(argparse.Namespace):
    """The options of a step, parsed.

    Attributes:
        neutral: the names of those that change nothing of what comes out, as their declarations say.
            A copy made of `vars` has none.
    """

    __slots__ = ("neutral",)  # so it is not among `vars`, which are the options
    neutral: frozenset[str]


Check = Callable[["Parser", Namespace], None]


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show defaults, but not those that say nothing.

    The lines of the description and of the example stay as they are.
    """

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, "", []):
            return action.help
        shown = copy.copy(action)
        # What is said of other steps than this one
        shown.help = (action.help or "").partition("; default: ")[0]
        return super()._get_help_string(shown)


class _Declaring(argparse._ActionsContainer):
    """Options are declared with what they do to a result.

    `add_argument(…, neutral=True)` declares one that says where, how fast or how often something
    happens, and changes nothing of what comes out: no checkpoint records it, and a run may go on
    with another value.
    """

    def add_argument(self, *names, neutral: bool = False, **words):
        """Declare an option; see the class and argparse."""
        action = super().add_argument(*names, **words)
        action.neutral = neutral  # type: ignore[attr-defined]
        return action

    def add_argument_group(self, *args, **words):
        """Make a named group of options."""
        group = _Group(self, *args, **words)
        self._action_groups.append(group)
        return group

    def add_mutually_exclusive_group(self, **words):
        """Make a group of options of which a command line has one at most."""
        group = _ExclusiveGroup(self, **words)
        self._mutually_exclusive_groups.append(group)
        return group


class _Group(_Declaring, argparse._ArgumentGroup):
    pass


class _ExclusiveGroup(_Declaring, argparse._MutuallyExclusiveGroup):
    pass


class Parser(_Declaring, argparse.ArgumentParser):
    """An ArgumentParser in which `--batch-size` and `--batch_size` are the same option.

    Args:
        description: what the step does.
        example: a command line, shown at the end of --help.
        prog: the name in messages, which a sub-command gets from its step; None: the script's.
        check: refuses options that contradict each other, by `Parser.error`, and may fill in what
            follows from others. `parse_args` calls it.
    """

    def __init__(
        self,
        description: str | None,
        example: str = "",
        prog: str | None = None,
        check: "Check | None" = None,
    ) -> None:
        epilog = f"example:\n  {example}" if example else None
        super().__init__(
            prog, None, description, epilog, formatter_class=_Formatter, allow_abbrev=False
        )
        self._optionals.title = "help"  # every other option stands in a group of its own
        self._check = check
        self._neutral_here = set[str]()

    def parse_args(self, args=None, namespace=None):
        """Parse, and refuse options that contradict each other."""
        parsed = super().parse_args(args, namespace or Namespace())
        parsed.neutral = frozenset(self._neutral(parsed))
        if self._check is not None:
            self._check(self, parsed)
        return parsed

    def set_neutral(self, *names: str) -> None:
        """Declare options, which other steps share, neutral in this one: see `_Declaring`."""
        self._neutral_here.update(names)

    def _neutral(self, args: Namespace) -> set[str]:
        """Give the names of neutral options, also of the command that `args` chooses."""
        names = self._neutral_here | {
            action.dest for action in self._actions if getattr(action, "neutral", False)
        }
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                names |= action.choices[getattr(args, action.dest)]._neutral(args)
        return names

    def check_files(self, args: Namespace) -> None:
        """Refuse files that options name and that are not there, and folders that take none.

        Args:
            args: the parsed options.

        Raises:
            InputError: the sentence of whoever would read the file.
        """
        # Sub-commands have parsers, and files, of their own.
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                action.choices[getattr(args, action.dest)].check_files(args)
            elif isinstance(action.type, Checked):
                named = getattr(args, action.dest, None)
                for path in named if isinstance(named, list) else [named]:
                    action.type.check(path)

    def parse_known_args(self, args=None, namespace=None):
        """Parse with dashes inside option names read as underscores."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([_with_underscores(str(word)) for word in words], namespace)

    def error(self, message: str) -> NoReturn:
        """End with the one line that helps; the usage of fifty options would hide it."""
        # argparse quotes each choice; plain words read better.
        message = re.sub(
            r"\(choose from .*\)", lambda choices: choices[0].replace("'", ""), message
        )
        message = message.removeprefix("argument ")
        self.exit(2, f"{self.prog}: error: {message} (--help shows all options)\n")

    def refuse_without_effect(self, args: Namespace, names: Sequence[str], reason: str) -> None:
        """Refuse options that were given though they have no effect beside another one.

        Args:
            args: the parsed options.
            names: their destinations.
            reason: "beside --convOut_path, whose features are stored already".
        """
        for action in self._actions:
            if action.dest in names and getattr(args, action.dest) != action.default:
                self.error(f"{action.option_strings[-1]} has no effect {reason}")

    def again(self, names: Sequence[str], *groups: object) -> list[str]:
        """Give the words that say options again, on the command line of a step that comes next.

        Args:
            names: their destinations; what is as it is without an option is left out.
            groups: objects that have these as attributes: groups of options, or parsed ones.
        """
        values = {name: value for group in groups for name, value in vars(group).items()}
        actions = {
            action.dest: action for action in reversed(self._actions) if action.dest in names
        }
        words = list[str]()
        for name in names:
            value, action = values[name], actions[name]
            if value not in (None, action.default):
                words += [action.option_strings[0], *([] if action.nargs == 0 else [str(value)])]
        return words

    def without(self, words: Sequence[str], names: Sequence[str]) -> list[str]:
        """Give a command line without some options that take one value.

        Args:
            words: the command line, which can be parsed.
            names: the options, "--resume", in each of their spellings.
        """
        # "--name value" is two words, "--name=value" one.
        kept, is_value = list[str](), False
        for word in map(_with_underscores, map(str, words)):
            is_option = word.partition("=")[0] in names
            if not is_option and not is_value:
                kept.append(word)
            is_value = is_option and "=" not in word
        return kept


def command_line(script: str, *words: object) -> str:
    """Give a command of this project, ready to paste."""
    return f"python {script} {shlex.join(str(word) for word in words)}"


def _with_underscores(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def whole(at_least: int, at_most: int = MOST, *, or_zero: bool = False) -> Callable[[str], int]:
    """Make an argparse type for whole numbers from `at_least` to `at_most`.

    `or_zero` takes 0 besides, where it means none.
    """
    wanted = f"{'0, or ' if or_zero else ''}a whole number of at"

    def parse(text: str) -> int:
        shown = text if len(text) <= DIGITS else f"{text[:DIGITS]}…"
        is_whole = re.fullmatch(r"[+-]?\d+", text.strip())
        if (is_whole and len(text) > DIGITS) or (is_whole and int(text) > at_most):
            raise argparse.ArgumentTypeError(f"expected {wanted} most {at_most}, got {shown!r}")
        if not is_whole or not (int(text) >= at_least or (or_zero and int(text) == 0)):
            raise argparse.ArgumentTypeError(f"expected {wanted} least {at_least}, got {shown!r}")
        return int(text)

    return parse


def real(
    at_least: float = 0, *, above: float | None = None, below: float = math.inf
) -> Callable[[str], float]:
    """Make an argparse type for finite numbers in a range.

    They are at least `at_least`, or above `above`, and below `below`.
    """
    wanted = f"of at least {at_least:g}" if above is None else f"above {above:g}"
    wanted += f" and below {below:g}" if below < math.inf else ""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        high_enough = value >= at_least if above is None else value > above
        if not (high_enough and value < below and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"expected a number {wanted}, got {text!r}")
        return value

    return parse


def list_of(kind: Callable[[str], Any], *, empty: bool = False) -> Callable[[str], list[Any]]:
    """Make an argparse type for `[0.1,0.1]`, with or without brackets.

    `kind` reads the entries.
    """

    def parse(text: str) -> list[Any]:
        inner = text.strip().removeprefix("[").removesuffix("]")
        try:
            entries = [kind(entry) for entry in inner.replace(" ", "").split(",") if entry]
        except argparse.ArgumentTypeError as error:  # which names the entry
            raise argparse.ArgumentTypeError(f"in a list such as [1,1]: {error}") from None
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"expected a list such as [1,1], got {text!r}"
            ) from None
        if not entries and not empty:
            raise argparse.ArgumentTypeError(
                f"expected a list such as [1,1], got {text!r}, which is empty"
            )
        return entries

    return parse


def some_path(text: str) -> str:
    """Read a path, for argparse: anything but nothing, which would mean the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"expected a path, got {text!r}")
    return text


class Checked:
    """An argparse type for names of files and folders, which are looked at when a step begins.

    Parsing does not look: a command line that is printed for later is parsed, too.
    `Parser.check_files` looks.

    Args:
        refuse: raises an InputError with one sentence, where what is read is not there or nothing
            can be written.
        read: reads the words of the command line.
        but: values that name no file.
    """

    def __init__(
        self,
        refuse: Callable[[str], object],
        read: Callable[[str], Any] = some_path,
        but: Sequence[str] = (),
    ) -> None:
        self._refuse, self._read, self._but = refuse, read, but

    def __call__(self, text: str) -> Any:
        """Read the name."""
        return self._read(text)

    def check(self, name: Any) -> None:
        """Look; None and what names no file pass."""
        if name is not None and name not in self._but:
            self._refuse(name)


checkpoint_file = Checked(check_checkpoint)
checkpoint_or_auto = Checked(check_checkpoint, str, but=("", "auto"))
weights_file = Checked(check_file)
feature_folder = Checked(check_feature_folder)
run_folder = Checked(check_run_folder)
image_folder = Checked(check_image_folder)
output_folder = Checked(check_writable)
architecture = Checked(check_architecture, str)
source_path = Checked(check_source, lambda text: Path(some_path(text)))


def result_file(*endings: str) -> Callable[[str], str]:
    """Make an argparse type for files to be written, with one of these endings if there are any.

    Without endings "-" is standard output.
    """

    def parse(text: str) -> str:
        if text == STANDARD_OUTPUT and not endings:
            return text
        if Path(some_path(text)).is_dir():
            raise argparse.ArgumentTypeError(f"expected a file, and {text} is a folder")
        try:
            check_writable(Path(text).parent)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if endings and not text.lower().endswith(endings):
            raise argparse.ArgumentTypeError(
                f"expected a name that ends in {', '.join(endings)}, got {text!r}"
            )
        return text

    return parse


def plain_name(text: str) -> str:
    """Read a part of a file name, for argparse."""
    if "/" in text or os.sep in text or text in (".", ".."):
        raise argparse.ArgumentTypeError(f"expected a name, not a path, got {text!r}")
    return text


class Ignored(argparse.Action):
    """An option that an old command line may have, and that does nothing in this step.

    It is accepted, said to be ignored, and not shown by --help.
    """

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(
            option_strings,
            argparse.SUPPRESS,
            nargs="?",
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )

    def __call__(self, parser, namespace, values, option_string=None):
        """Say so."""
        remark(f"{option_string} has no effect and is ignored")
