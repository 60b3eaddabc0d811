"""Whether what a step reads is there, before PyTorch is loaded for it. Nothing is opened."""

from pathlib import Path

from utils.errors import InputError


def check_checkpoint(path: str | Path) -> None:
    """Refuse a checkpoint that is not there, and name those beside it.

    The usual mistake is a suffix.

    Raises:
        InputError: there is no such file.
    """
    path = Path(path)
    if path.is_file():
        return
    neighbours = (
        sorted(other.name for other in path.parent.glob("*.pth*")) if path.parent.is_dir() else []
    )
    if not neighbours:
        raise InputError(f"no checkpoint at {path}; train it first or correct the path")
    shown = ", ".join(neighbours[:4]) + (", …" if len(neighbours) > 4 else "")
    raise InputError(f"no checkpoint at {path}; that folder has {shown}")


def check_file(path: str | Path) -> None:
    """Refuse any other file that is not there.

    Raises:
        InputError: there is no such file.
    """
    if not Path(path).is_file():
        raise InputError(f"there is no file {path}; correct the path")


def check_feature_folder(folder: str | Path) -> None:
    """Refuse a folder of stored features that is not there.

    Raises:
        InputError: there is no such folder.
    """
    correct = "correct the path or run ConvOutput.py"
    _check_folder(folder, f"no stored features at {folder}: it is no folder; {correct}")


def check_image_folder(folder: str | Path) -> None:
    """Refuse a folder of images that is not there.

    Raises:
        InputError: there is no such folder.
    """
    correct = "name one with a folder for each class, or with train and test"
    _check_folder(folder, f"there is no folder {folder}; {correct}")


def check_source(source: str | Path) -> None:
    """Refuse an official archive, or a folder with its content, that is not there.

    Raises:
        InputError: there is neither.
    """
    if not Path(source).exists():
        raise InputError(f"--src {source} does not exist; give a folder or an archive")


def check_architecture(arch: str) -> None:
    """Refuse an architecture `file.py:factory` whose file is not there; names of others pass.

    Raises:
        InputError: there is no such file.
    """
    source = arch.rpartition(":")[0]
    if source.endswith(".py"):
        check_program(source, arch)


def check_program(source: str, arch: str) -> None:
    """Refuse a file of Python that is not there; `arch` asks for it.

    Raises:
        InputError: there is no such file.
    """
    path = Path(source).expanduser().resolve()
    if not path.is_file():
        raise InputError(f"{arch}: there is no file {path}")


def check_run_folder(folder: str | Path) -> None:
    """Refuse a folder of results that is not there.

    Raises:
        InputError: there is no such folder.
    """
    correct = "name the one that --json and --figure wrote to"
    _check_folder(folder, f"there is no folder {folder}; {correct}")


def _check_folder(folder: str | Path, sentence: str) -> None:
    if not Path(folder).is_dir():
        raise InputError(sentence)
