"""The one exception that means "the input is at fault, not the program"."""


class InputError(Exception):
    """A file, folder or option value that cannot be used.

    The message is one sentence for the person at the keyboard: what was expected, what came, and
    what to do about it. `utils.command.command` prints it without a traceback and exits with code
    1.
    """


class DivergedError(InputError):
    """A fit has infinities or NaN. The log of its run adds which checkpoint is the last good one."""
