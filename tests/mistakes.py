"""Assertions on refusals: that one is raised, in one line, with the option and the value in it.

The wording is free: a test that pins a sentence breaks when the sentence is improved.
"""

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from utils.errors import InputError


@contextlib.contextmanager
def refused(
    *facts: object, kind: type[BaseException] = InputError
) -> Iterator[pytest.ExceptionInfo[Any]]:
    """Assert that the block is refused in one line that has the facts.

    Args:
        facts: options, values, names of files: each must be part of the message.
        kind: of the error; `SystemExit` where a script ends itself.

    Yields:
        The error, once it is raised.
    """
    with pytest.raises(kind) as caught:
        yield caught
    check_line(str(caught.value), *facts)


def refuses(
    main: Callable[[Sequence[str]], Any], argv: Sequence[str], *facts: object, code: int = 1
) -> None:
    """Assert that a script refuses a command line with an exit code, in one line with the facts.

    Args:
        main: of the script.
        argv: the command line, without the script.
        facts: see `refused`.
        code: 1: what the words name is at fault; 2: the words themselves are.
    """
    printed = io.StringIO()
    with pytest.raises(SystemExit) as caught, contextlib.redirect_stderr(printed):
        main(argv)
    # `sys.exit(sentence)` prints the sentence and ends with code 1; a parser prints it itself.
    if isinstance(caught.value.code, str):
        message, found = caught.value.code, 1
    else:
        message, found = printed.getvalue().rstrip().rpartition("\n")[2], caught.value.code
    assert found == code, message
    check_line(message, *facts)


def check_line(message: str, *facts: object) -> None:
    """Assert that a message is one line, and has every fact."""
    assert message and "\n" not in message.strip(), message
    missing = [str(fact) for fact in facts if not _has(message, str(fact))]
    assert not missing, f"{missing} not in: {message}"


def check_some_line(printed: str, *facts: object) -> None:
    """Assert that one of the lines that a step printed has every fact."""
    lines = printed.splitlines()
    found = any(all(_has(line, str(fact)) for fact in facts) for line in lines)
    assert found, f"no line has {[str(fact) for fact in facts]}: {printed}"


def _has(message: str, fact: str) -> bool:
    """Whether a message has a fact as whole words: 1 is no part of 10."""
    before = r"(?<!\w)" if fact[:1].isalnum() else ""
    after = r"(?!\w)" if fact[-1:].isalnum() else ""
    return re.search(f"{before}{re.escape(fact)}{after}", message) is not None
