"""Seeded damage to files, and what a reader makes of it.

    python -m tests.chaos.mutations --count 10000 --seed 0

prints a table: per kind of file how many were refused, read as before, read as something else, and
what must not be: tracebacks, hangs over 10 s, memory over 1 GB.
"""

import argparse
import contextlib
import io
import json
import math
import random
import resource
import shutil
import signal
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.chaos.kinds import KINDS, Kind
from utils import checkpoint, remarks
from utils.errors import InputError

SECONDS, GIGABYTE = 10, 1 << 30
BAD = ("traceback", "hang", "memory", "changed unseen")
LEAVES = [
    None,
    True,
    -1,
    10**6,
    10**12,
    10**30,
    0.5,
    math.nan,
    math.inf,
    "",
    "x",
    "../x",
    [],
    {},
    [[]],
    {"x": None},
    [1, "x", None],
]
Damage = Callable[[Path, random.Random], None]


def flip_bytes(path: Path, draw: random.Random) -> None:
    """Change one to eight bytes anywhere."""
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        content[draw.randrange(len(content))] ^= draw.randrange(1, 256)
    path.write_bytes(content)


def flip_near_an_end(path: Path, draw: random.Random) -> None:
    """Change bytes where headers and tables of contents are."""
    content = bytearray(path.read_bytes())
    reach = min(len(content), 200)
    for _ in range(draw.choice((1, 2, 4))):
        place = draw.randrange(reach)
        content[place if draw.random() < 0.5 else -1 - place] = draw.randrange(256)
    path.write_bytes(content)


def truncate(path: Path, draw: random.Random) -> None:
    """Cut the file, anywhere or near its ends."""
    size = path.stat().st_size
    length = draw.choice((0, 1, size - 1, draw.randrange(size), draw.randrange(size)))
    path.write_bytes(path.read_bytes()[:length])


def append(path: Path, draw: random.Random) -> None:
    """Add bytes behind the end: zeros, noise, or the file again."""
    content = path.read_bytes()
    more = draw.choice((bytes(100), draw.randbytes(100), content))
    path.write_bytes(content + more)


def swap_ranges(path: Path, draw: random.Random) -> None:
    """Exchange two ranges of bytes, or fill one with zeros or noise."""
    content = bytearray(path.read_bytes())
    length = draw.randrange(1, max(2, min(len(content) // 2, 512)))
    one, other = (draw.randrange(max(1, len(content) - length)) for _ in range(2))
    kind = draw.randrange(3)
    first = bytes(content[one : one + length])
    content[one : one + length] = (
        bytes(content[other : other + length]),
        bytes(length),
        draw.randbytes(length),
    )[kind][: len(first)]
    if kind == 0:
        content[other : other + length] = first[: len(content[other : other + length])]
    path.write_bytes(content[: path.stat().st_size])


def replace_whole(path: Path, draw: random.Random) -> None:
    """Put something else in its place: nothing, noise, text, another format."""
    buffer = io.BytesIO()
    np.save(buffer, np.arange(draw.randrange(5)))
    torch_file = io.BytesIO()
    torch.save(draw.choice(([1, 2], {"x": 1}, torch.zeros(2))), torch_file)
    path.write_bytes(
        draw.choice(
            (
                b"",
                draw.randbytes(200),
                b"[" * 50_000,
                b'{"epoch": 1}',
                b"null",
                b"\xff\xfe\x00",
                buffer.getvalue(),
                torch_file.getvalue(),
                b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000,), }",
            )
        )
    )


def damage_entry(path: Path, draw: random.Random) -> None:
    """Remove, rename, swap or cut an entry of a zip archive, whose sums are then right again."""
    if not zipfile.is_zipfile(path):
        flip_bytes(path, draw)
        return
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    names = list(entries)
    one, other = draw.choice(names), draw.choice(names)
    kind = draw.randrange(4)
    if kind == 0:
        del entries[one]
    elif kind == 1:
        entries[one + "x"] = entries.pop(one)
    elif kind == 2:
        entries[one], entries[other] = entries[other], entries[one]
    else:
        entries[one] = entries[one][: draw.randrange(len(entries[one]) + 1)]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def change_value(path: Path, draw: random.Random) -> None:
    """Change a value of the content, and write a file that is whole: types, shapes, sizes, NaN."""
    if path.suffix in (".json", ".jsonl", ".txt"):
        lines = path.read_text().splitlines() if path.suffix != ".json" else [path.read_text()]
        place = draw.randrange(len(lines))
        begin = "json_stats: " if path.suffix == ".txt" else ""
        content = _changed(json.loads(lines[place].removeprefix(begin)), draw)
        lines[place] = begin + json.dumps(content)
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".npy":
        array = np.load(path)
        changed = draw.choice(
            (
                lambda: array.astype(draw.choice(("<f4", ">f8", "<i2", "<c8", "<U3", "?"))),
                lambda: array[: len(array) // 2],
                lambda: array[..., None],
                lambda: np.full_like(array, np.nan if array.dtype.kind == "f" else 1),
                lambda: np.asfortranarray(array),
            )
        )()
        np.save(path, changed)
    elif path.suffix in (".tar", ".pth", ".pt", ".pkl"):
        try:
            with torch.serialization.safe_globals(checkpoint._plain_types()):
                state = torch.load(path, weights_only=True)
        except Exception:
            flip_bytes(path, draw)
            return
        is_zip = zipfile.is_zipfile(path)
        torch.save(
            _changed(state, draw, has_cycles=True), path, _use_new_zipfile_serialization=is_zip
        )
    else:
        damage_entry(path, draw)


def _changed(content: Any, draw: random.Random, *, has_cycles: bool = False) -> Any:
    """Change one value somewhere in dictionaries and lists; JSON has no list that holds itself."""
    inside = list(content) if isinstance(content, dict) else range(len(content))
    if not len(inside):
        return draw.choice(LEAVES)
    key = draw.choice(list(inside))
    value = content[key]
    if isinstance(value, dict | list) and len(value) and draw.random() < 0.8:
        content[key] = _changed(value, draw, has_cycles=has_cycles)
    elif isinstance(content, dict) and draw.random() < 0.2:
        del content[key]
    elif isinstance(value, Tensor) and draw.random() < 0.8:
        content[key] = _changed_tensor(value, draw)
    elif has_cycles and draw.random() < 0.1:
        inner: list[Any] = []
        inner.append(inner)
        content[key] = inner
    else:
        content[key] = draw.choice(LEAVES)
    return content


def _changed_tensor(value: Tensor, draw: random.Random) -> Tensor:
    kinds: tuple[Callable[[], Tensor], ...] = (
        lambda: value[None],
        lambda: value.flatten()[:-1],
        lambda: torch.zeros(()).expand(10**6, 10**6),  # of one number in the file
        lambda: torch.full_like(value, math.nan) if value.is_floating_point() else value,
        lambda: torch.full_like(value, math.inf) if value.is_floating_point() else value,
        value.double,
        lambda: value.to(torch.complex64),
        lambda: torch.zeros(0),
        lambda: (value * 0).to(torch.int8),
    )
    return draw.choice(kinds)()


BYTES: tuple[Damage, ...] = (flip_bytes, flip_near_an_end, truncate, append, swap_ranges)
# These write another whole file, of which no sum can say that it is not the right one.
FILES: tuple[Damage, ...] = (replace_whole, damage_entry, change_value)


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Raise where a block takes over 10 s of a core, or a minute, or over 1 GB of memory more."""

    def ring(*_: object) -> None:
        raise TimeoutError

    size = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    # On a busy machine seconds of a clock say nothing of the reader
    handlers = {one: signal.signal(one, ring) for one in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(6 * SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (size + GIGABYTE, hard))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for one, handler in handlers.items():
            signal.signal(one, handler)
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))


def is_same(one: Any, other: Any) -> bool:
    """Compare what was read, to the bit."""
    if isinstance(one, Tensor):
        same = isinstance(other, Tensor) and one.dtype == other.dtype and one.shape == other.shape
        return same and torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and np.array_equal(one, other)
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(is_same(one[key], other[key]) for key in one)
        )
    if isinstance(one, list | tuple):
        same = isinstance(other, list | tuple) and len(one) == len(other)
        return same and all(map(is_same, one, other))
    return type(one) is type(other) and bool(one == other)


def outcome(kind: Kind, whole: Path, folder: Path, expected: Any, seed: int) -> tuple[str, str]:
    """Damage one file of a kind, read it, and say what came of it, and how."""
    draw = random.Random(f"{kind.name} {seed}")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder, symlinks=True)
    files = (whole / ".files").read_text().splitlines()
    name = draw.choice(files)
    damage = draw.choice(BYTES if draw.random() < 0.6 else FILES)
    damage(folder / name, draw)
    how = f"{damage.__name__} of {name}, seed {seed}"
    try:
        with limits(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read = kind.read(folder, folder / name)
            same = is_same(read, expected)
    except (InputError, SystemExit):
        return "refused", how
    except TimeoutError:
        return "hang", how
    except MemoryError:
        return "memory", how
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        memory = "allocate memory" in str(error) or "Cannot allocate" in str(error)
        return "memory" if memory else "traceback", f"{how}: {type(error).__name__} {error}"[:300]
    if same:
        return "as before", how
    unseen = kind.heals or (kind.has_sum and damage in BYTES)
    return "changed unseen" if unseen else "another content", how


def count_outcomes(kind: Kind, seeds: range, say: Callable[[str], object] = print) -> Counter[str]:
    """Damage files of a kind, once for each seed."""
    outcomes = Counter[str]()
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place, "whole")
        whole.mkdir()
        with contextlib.redirect_stdout(io.StringIO()):
            made = kind.make(whole)
            names = [path.relative_to(whole).as_posix() for path in made]
            (whole / ".files").write_text("\n".join(names))
            folder = Path(place, "damaged")
            shutil.copytree(whole, folder, symlinks=True)
            expected = kind.read(folder, folder / names[0])
        for seed in seeds:
            remarks.forget()
            result, how = outcome(kind, whole, folder, expected, seed)
            outcomes[result] += 1
            if result in BAD:
                say(f"{kind.name}: {result}: {how}")
    return outcomes


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--kind", default="", help="a part of the names of kinds")
    args = parser.parse_args()
    kinds = [kind for kind in KINDS if args.kind in kind.name]
    columns = ("refused", "as before", "another content", *BAD)
    print("| kind | " + " | ".join(columns) + " |\n|---|" + "---:|" * len(columns))
    total = Counter[str]()
    for kind in kinds:
        each = math.ceil(args.count / len(kinds))
        outcomes = count_outcomes(
            kind, range(args.seed, args.seed + each), lambda line: print(line, file=sys.stderr)
        )
        total += outcomes
        print(f"| {kind.name} | " + " | ".join(str(outcomes[name]) for name in columns) + " |")
        sys.stdout.flush()
    print("| all | " + " | ".join(str(total[name]) for name in columns) + " |")


if __name__ == "__main__":
    main()
