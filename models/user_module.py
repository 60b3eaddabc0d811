"""The user's modules: imported by name, or loaded from a file of any repository.

To import a module is to run its code. `models.own` does so only where an option names it.
"""

import ast
import contextlib
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from utils.errors import InputError
from utils.presence import check_program

PROJECT = Path(__file__).resolve().parents[1]  # the checkout, or site-packages
# This project's packages, whose names a user's repository may have too
PACKAGES = ("models", "utils", "consistency", "experiments", "benchmarks", "tests")


@dataclass
class Home:
    """The folders in which the imports of a user's file are looked for.

    Attributes:
        first: are searched before all other folders.
        last: are searched after all other folders.
        package: the top package that the file is a module of, or "".
        modules: were imported from there, by name. They are in `sys.modules` only inside `entered`.
    """

    first: tuple[Path, ...]
    last: tuple[Path, ...] = ()
    package: str = ""
    modules: dict[str, ModuleType] = field(default_factory=dict)

    def has(self, name: str, module: ModuleType) -> bool:
        """Whether a module was imported from these folders directly.

        A folder may hold installed packages deeper inside (a `.venv`); those do not count.
        """
        return any(
            _stands_at(module, folder, name.partition(".")[0])
            for folder in (*self.first, *self.last)
        )

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Let imports find this home's modules, also those with a name of this project's.

        Afterwards `sys.modules` and `sys.path` are restored; what was imported from elsewhere
        stays.
        """
        # Loaded packages, such as this project's `models`, that hide one of the same name here
        rivals = {
            name
            for name in (*PACKAGES, self.package)
            if name in sys.modules and self._replaces(name)
        }
        # What is loaded now comes back at the end, module by module.
        before = dict(sys.modules)
        # With a rival all its submodules go: `models.x` would be found under ours.
        for name in before:
            if name.partition(".")[0] in rivals:
                del sys.modules[name]
        for name in rivals:
            self._make_namespace(name)
        sys.modules.update(self.modules)
        path = list(sys.path)
        first, last = (list(map(str, folders)) for folders in (self.first, self.last))
        # Where a name of ours is meant otherwise, this home goes before all else.
        sys.path[:] = [*first, *last, *path] if rivals else [*first, *path, *last]
        importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.path[:] = path
            # Keep this home's modules for the next entry, and take them out of everybody's way.
            imported = {
                name: module
                for name, module in sys.modules.items()
                if before.get(name) is not module
                and (name in self.modules or self.has(name, module))
            }
            self.modules |= imported
            for name in imported:
                del sys.modules[name]
            sys.modules.update(before)

    def _make_namespace(self, name: str) -> None:
        """Make a package of a folder without an `__init__.py`.

        Python's namespace packages have two faults here. Their `__file__` is None, which breaks
        `inspect` where it has seen another package of that name. And Python would prefer a package
        with an `__init__.py` from anywhere on the path.
        """
        folders = [folder / name for folder in (*self.first, *self.last)]
        regular = any(
            (folder / "__init__.py").is_file() or folder.with_suffix(".py").is_file()
            for folder in folders
        )
        if not regular and name not in self.modules:
            self.modules[name] = package = ModuleType(name)
            package.__path__ = [str(folder) for folder in folders if folder.is_dir()]

    def _replaces(self, name: str) -> bool:
        """Whether a loaded top package hides one of the same name in this home."""
        module = sys.modules[name]
        ours = name in PACKAGES and _stands_at(module, PROJECT, name)
        if self.has(name, module) or not (ours or name == self.package):
            return False
        folders = (*self.first, *self.last)
        return any(
            (folder / f"{name}.py").is_file() or any((folder / name).glob("*.py"))
            for folder in folders
        )


# Each file is run once, so that its classes stay the same objects.
_files: dict[Path, tuple[ModuleType, Home]] = {}


@contextlib.contextmanager
def opened(source: str, arch: str) -> Iterator[ModuleType]:
    """Import a module; code in the block imports as the module does.

    Args:
        source: "package.module", installed or on PYTHONPATH; or a path that ends in ".py". Such a
            file imports as in its repository: its siblings, relative imports, and neighbouring
            packages. They may be called `models` or `utils` as this project's are: neither side
            sees the other's.
        arch: the architecture's name, for messages.

    Raises:
        InputError: there is no such module, or its code or the block's fails.
    """
    try:
        if not source.endswith(".py"):
            yield _import(source, arch)
            return
        path = Path(source).expanduser().resolve()
        check_program(source, arch)
        if path not in _files:
            home = _home_of(path)
            with home.entered():
                _files[path] = (_load(path, home), home)
        module, home = _files[path]
        with home.entered():
            yield module
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{arch}: {_failure(error)}") from error


def _import(name: str, arch: str) -> ModuleType:
    """Import a module by its name."""
    package = name.partition(".")[0]
    words = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    folders = [str(Path(folder).absolute()) for folder in words if folder]
    sys.path.extend(folder for folder in folders if folder not in sys.path)
    importlib.invalidate_caches()
    # `meant`: on PYTHONPATH; `present`: what an import would find, which may be another package.
    meant = importlib.machinery.PathFinder.find_spec(package, folders) if package else None
    present = importlib.util.find_spec(package) if package else None
    if present is None:
        raise InputError(
            f"{arch}: no module {package!r} is installed or on PYTHONPATH; set PYTHONPATH to the"
            " folder that has it, or name its file, as in --arch path/to/nets.py:factory"
        )
    if meant is not None and meant.origin != present.origin:
        raise InputError(
            f"{arch}: the name {package} means another package here; name the file instead, as in "
            f"--arch {Path(folders[0], *name.split('.'))}.py:factory"
        )
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A module that the user's code imports may be missing, too: that is the code's failure.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise InputError(
            f"{arch}: there is no module {error.name} in {present.origin or package}"
        ) from None


def _home_of(path: Path) -> Home:
    """Find the folders that a file's imports mean: its folder, and the one above its package."""
    folder = root = path.parent
    while (root / "__init__.py").exists() and root.parent != root:
        root = root.parent
    if root != folder:
        return Home((root, folder), package=path.relative_to(root).parts[0])
    # Without an __init__.py the folder may still be a package, of a repository one folder above.
    return Home((folder,), (folder.parent,))


def _load(path: Path, home: Home) -> ModuleType:
    """Run a file as a module; its home must be entered.

    A file of no package gets one of its own, if it has relative imports.
    """
    if home.package:
        names = path.relative_to(home.first[0]).with_suffix("").parts
        return importlib.import_module(".".join(names if names[-1] != "__init__" else names[:-1]))
    # Relative imports need a package; the syntax tree says whether there are any.
    tree = ast.parse(path.read_bytes(), str(path))
    name = path.stem
    if any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree)):
        package = ModuleType(f"_{path.parent.name.replace('.', '_')}")
        package.__path__ = [str(path.parent)]
        home.modules[package.__name__] = sys.modules[package.__name__] = package
        name = f"{package.__name__}.{name}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    home.modules[name] = sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _stands_at(module: ModuleType, folder: Path, name: str) -> bool:
    """Whether a module, or its package, is `name` or `name.py` in a folder."""
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    inside = (folder / name, folder / f"{name}.py")
    return any(Path(place).is_relative_to(tops) for place in places if place for tops in inside)


def _failure(error: Exception) -> str:
    """Describe an error in a user's code, with the file and the line."""
    sentence = str(error).partition("\n")[0]
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {sentence}"
    frames = traceback.extract_tb(error.__traceback__)
    # The innermost frame of the user's code, not of a library that it calls
    of_user = [
        frame
        for frame in frames
        if not frame.filename.startswith("<")
        and "site-packages" not in frame.filename
        and frame.filename != __file__
    ]
    place = (of_user or frames)[-1]
    return f"{place.filename}, line {place.lineno}: {type(error).__name__}: {sentence}"
