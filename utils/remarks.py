"""Remarks: what a person should know of how an input was read, each said once a run."""

import os

_made: set[str] = set()


def remark(sentence: str) -> None:
    """Print a sentence, if this run has not said it yet;
    of several processes only the first speaks.
    """
    if sentence not in _made and int(os.environ.get("RANK", "0")) == 0:
        print(f"note: {sentence}", flush=True)
    _made.add(sentence)


def forget() -> None:
    """Begin a new run, in which every sentence may be said again."""
    _made.clear()
