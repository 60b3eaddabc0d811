"""How a step is run from the command line, and how it ends. Importing this loads no PyTorch."""

import contextlib
import errno
import functools
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

from utils import peers, stopping
from utils.errors import InputError
from utils.files import STANDARD_OUTPUT, results_alone
from utils.later import defer_compiler
from utils.parser import Parser

Result = TypeVar("Result")
# A full disk, a quota, a limit on a file's size; a place that may not be written to; a pipe whose
# reader is gone
NOT_WRITABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EROFS,
    errno.EPIPE,
)


def answer_early(parser: Parser) -> None:
    """Answer what needs no PyTorch: `--help`, a wrong option, a missing file.

    A script calls this between the declaration of its options and its heavy imports, which take
    seconds. It returns where the options are good; `main` then parses them again.
    """
    with _ended_in_one_line(Path(sys.argv[0]).name):
        parser.check_files(parser.parse_args())


def command(main: Callable[[Sequence[str] | None], Result]) -> Callable[..., Result]:
    """Turn a script's `main(argv)` into a command.

    Bad input is one sentence and exit code 1, no traceback.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> Result:
        # The script's file, whoever calls its `main`.
        name = Path(sys.modules[main.__module__].__file__ or main.__module__).name
        several = False
        defer_compiler()
        if main.__module__ == "__main__":
            # What was imported stays: collections of garbage, half a second with it, leave it out
            gc.freeze()
        words = map(str, sys.argv[1:] if argv is None else argv)
        # A result goes to standard output: `--json -` or `--json=-`.
        to_output = any(word == STANDARD_OUTPUT or word.endswith("=-") for word in words)
        try:
            with (
                stopping.handled(),
                _quiet_threads(),
                _ended_in_one_line(name),
                results_alone() if to_output else nullcontext(),
            ):
                result = main(argv)
                if several := _is_one_of_several():
                    peers.finish()
                    # Leave together: a process that ends while another still talks to it breaks
                    # that one
                    _distributed().barrier()
        finally:
            peers.leave()
            if _is_one_of_several():
                _distributed().destroy_process_group()
        if several and main.__module__ == "__main__":
            _leave()
        return result

    return run


@contextlib.contextmanager
def _ended_in_one_line(name: str) -> Iterator[None]:
    """End the process with one sentence where the input is at fault, or the person ends it."""
    try:
        yield
    except InputError as error:
        # One that a loader's worker raised comes with the worker's traceback in front.
        sentence = str(error).splitlines()[-1].removeprefix("utils.errors.InputError: ")
        sys.exit(f"{name}: {sentence}" if peers.refuse() else 1)
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        sys.exit(
            f"{name}: cannot write or read {error.filename or 'a file'}: {error.strerror}; files"
            " that were there before are whole"
        )
    except RuntimeError:
        # What a collective raises where another process is gone: then this one ends in there
        peers.wait_for_a_sign()
        raise
    except KeyboardInterrupt as interruption:
        print(f"{name}: interrupted; what was saved is whole", file=sys.stderr)
        sys.exit(getattr(interruption, "code", 130))


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """Leave out the traceback of a thread that cannot write: the main one raises its error again.

    TensorBoard writes by such a thread.
    """
    before = threading.excepthook

    def say(failed: threading.ExceptHookArgs) -> None:
        if getattr(failed.exc_value, "errno", None) not in NOT_WRITABLE:
            before(failed)

    threading.excepthook = say
    try:
        yield
    finally:
        threading.excepthook = before


def _distributed() -> Any:
    """Give `torch.distributed`, or None where no step has loaded it."""
    return sys.modules.get("torch.distributed")


def _is_one_of_several() -> bool:
    """Whether this process has joined others under torchrun."""
    distributed = _distributed()
    return distributed is not None and distributed.is_initialized()


def _leave() -> None:
    """End this process of several, which did its work, without the interpreter's own end.

    `DistributedDataParallel` leaves the threads of gloo running even where the group is destroyed.
    A process was seen, once, to abort in that end after all was written, and torchrun calls such a
    run failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
