"""Every step that writes state, under every fault: it ends in one sentence, and goes on as if nothing had been.

    python -m tests.chaos.matrix --rounds 5 --seed 0

prints a table. A cell forks this process, which has PyTorch already, and runs the step's `main` in
a folder of its own. Something happens to it: see `FAULTS`. Then the same command goes on until its
end. Every file of the folder is held against that of an undisturbed run, to the bit.
"""

import argparse
import contextlib
import ctypes
import importlib
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests import same_numbers
from tests.chaos.apart import Apart, End, at_moment
from tests.chaos.steps import STEPS, Step, make_ground
from utils.files import read_json
from utils.report import page

SIZES = 7  # of a full disk and of a file's limit
PAGE = 4096
# In texts of the authors' forms: times, and how a run was begun
TIMES = re.compile(r'(duration:|_time": |"resume": |<dc:date>)[^\s,<]+')
# What a comparison says of the run itself: when it was, what it took from its cache
OF_THE_RUN = re.compile(r"\b(parts|created)\b")
# What names a moment, and no state: TensorBoard's files, the times of checked files, and the state
# before the last one, which is one within an epoch where a run was left there
PASSING = re.compile(r"tfevents|\.verified\.json$|\.tar\.\d+$")


@dataclass
class Cell:
    """A step in its folder, to which something happens.

    Attributes:
        step: runs there.
        name: of the step.
        work: the folder.
        whole: the folder of the undisturbed run.
        undisturbed: how that one ended.
        draw: of this round.
        number: of this round, from 0.
        how: what happens, for a message.
        at_the_end: what is undone behind the cell.
    """

    step: Step
    name: str
    work: Path
    whole: Path
    undisturbed: End
    draw: random.Random
    number: int = 0
    how: str = ""
    at_the_end: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def run(
        self,
        arm: Callable[[], object] = lambda: None,
        kill: tuple[int, float] | None = None,
        more: str = "",
    ) -> End:
        """Run the step.

        Args:
            arm: is called in its process before.
            kill: a signal, and the seconds after which it comes.
            more: words.
        """
        words = shlex.split(f"{self.step.line} {more}")
        main, script = partial(self.step.script.main, words), str(self.step.script.__file__)
        return Apart(main, self.work, arm, script=script).end(kill)

    def a_moment(self) -> int:
        """Draw a moment at which a file is flushed or gets its name."""
        return self.draw.randrange(max(1, self.undisturbed.moments))

    def sizes(self) -> list[int]:
        """List the sizes in bytes of what the undisturbed run left."""
        return [path.stat().st_size for path in self.whole.rglob("*") if path.is_file()]


# --- what happens


def signalled(number: int, cell: Cell) -> End:
    """Send a signal at a random time."""
    seconds = cell.draw.uniform(0.02, cell.undisturbed.seconds)
    cell.how = f"{signal.Signals(number).name} after {seconds:.2f} s"
    return cell.run(kill=(number, seconds))


def killed_at_a_moment(cell: Cell) -> End:
    """Kill the process just before it flushes a file or gives one its name."""
    # Round by round all of them, from a random one on
    moments = max(1, cell.undisturbed.moments)
    moment = (cell.a_moment() + cell.number) % moments
    cell.how = f"SIGKILL before moment {moment} of {moments}"
    return cell.run(lambda: at_moment(moment, lambda: os.kill(os.getpid(), signal.SIGKILL)))


def full_disk(cell: Cell) -> End:
    """Let the folder be a file system that has room for an eighth or more of what is written."""
    share = (1 + cell.number % SIZES) / (SIZES + 1)
    size = max(PAGE, int(share * sum(cell.sizes())))
    cell.how = f"a file system of {size:,} bytes"
    if mount(cell.work, f"size={size}"):
        cell.at_the_end.callback(unmount, cell.work)
        end = cell.run()
        mount(cell.work, "remount,size=1g")
        return end
    cell.how += ", which cannot be mounted here: a limit on a file's size instead"
    return file_limit(cell)


def file_limit(cell: Cell) -> End:
    """Let no file be larger than a part of the largest one that is written."""
    share = (1 + cell.number % SIZES) / (SIZES + 1)
    size = int(share * max(cell.sizes()))
    cell.how = f"no file over {size:,} bytes"
    return cell.run(partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size,) * 2))


def read_only(cell: Cell) -> End:
    """Let all folders be read-only, from the beginning or from a random moment on."""
    moment = -1 if cell.number == 0 else cell.a_moment()
    cell.how = "read-only" + f" from moment {moment} on" * (moment >= 0)

    def arm() -> None:
        drop_rights()
        if moment < 0:
            make_read_only(cell.work)
        else:
            at_moment(moment, lambda: make_read_only(cell.work))

    end = cell.run(arm)
    for folder in (cell.work, *cell.work.rglob("*")):
        if folder.is_dir():
            folder.chmod(0o755)
    return end


def torn(cell: Cell) -> End:
    """Kill the process, and cut the last bytes off the newest file."""
    end = killed_at_a_moment(cell)
    files = [path for path in cell.work.rglob("*") if path.is_file() and is_state(path)]
    whole = [path for path in files if path.name[0] != "."]
    if whole:
        newest = max(whole, key=lambda path: path.stat().st_mtime_ns)
        size = newest.stat().st_size
        os.truncate(newest, max(0, size - cell.draw.choice((1, 20, size // 3))))
        cell.how += f", {newest.name} cut to {newest.stat().st_size} of {size} bytes"
    return end


FAULTS: dict[str, Callable[[Cell], End]] = {
    "SIGTERM": partial(signalled, signal.SIGTERM),
    "SIGINT": partial(signalled, signal.SIGINT),
    "SIGKILL": partial(signalled, signal.SIGKILL),
    "SIGKILL before fsync or replace": killed_at_a_moment,
    "full disk": full_disk,
    "file limit": file_limit,
    "read-only": read_only,
    "torn newest file": torn,
}
AT_EACH_SIZE = {"full disk", "file limit"}


def mount(folder: Path, options: str) -> bool:
    """Mount a file system of its own on a folder, in memory; False: this may not be done here."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False


def unmount(folder: Path) -> None:
    """End it."""
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


def drop_rights() -> None:
    """Let root be refused like anybody else: take all capabilities from this process."""
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capset(header, nothing)


def make_read_only(folder: Path) -> None:
    """Take the right to write from a folder and all folders below."""
    for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        place.chmod(0o555)


# --- what came of it


def is_state(path: Path) -> bool:
    """Whether a file is state that a later run reads."""
    return not PASSING.search(path.name)


def read(path: Path) -> Any:
    """Read a file that a step wrote as plain values, tensors or text without its times."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: arrays[name].tolist() for name in arrays}
    if path.suffix == ".txt":
        return TIMES.sub("", path.read_text())
    if path.suffix == ".html":
        values = page.values(path.read_text())
        return [
            (value.place, value.value, value.text)
            for value in values
            if not OF_THE_RUN.search(value.place)
        ]
    if path.name == "compare.json":
        return {key: value for key, value in read_json(path).items() if not OF_THE_RUN.match(key)}
    known = (".pth.tar", ".pth", ".npy", ".json", ".jsonl", ".csv")
    if path.suffix == ".pt7":
        return torch.load(path, map_location="cpu", weights_only=True)
    return same_numbers.read(path) if path.name.endswith(known) else path.read_bytes()


def differences(whole: Path, work: Path) -> Iterator[str]:
    """Name what is not as the undisturbed run left it."""
    theirs, ours = (
        {
            path.relative_to(folder).as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.is_file() and is_state(path)
        }
        for folder in (whole, work)
    )
    yield from (f"{name} is missing" for name in theirs if name not in ours)
    yield from (f"{name} is a leftover" for name in ours if name not in theirs)
    for name in theirs.keys() & ours.keys():
        if theirs[name].read_bytes() != ours[name].read_bytes():
            yield from same_numbers.differences(read(theirs[name]), read(ours[name]), name)


def complaints(step: Step, end: End) -> Iterator[str]:
    """Say what is wrong with the way in which a step ended."""
    printed = end.out + end.err
    if "Traceback" in printed:
        yield f"traceback: {printed[printed.rfind('Traceback') :][-600:]}"
    elif end.code > 0:
        name = Path(step.script.__file__ or "").name
        # A progress bar stands before on the same line
        sentences = re.findall(rf"(?:^|[\r\n]){re.escape(name)}: [^\n]+", end.err)
        if end.code not in (1, 2, 130, 143) or len(sentences) != 1:
            yield f"exit code {end.code} with {len(sentences)} sentences: {end.err[-300:]}"
    elif end.code < 0 and end.code not in (-signal.SIGKILL, -signal.SIGTERM):
        yield f"killed by {signal.Signals(-end.code).name}: {end.err[-600:]}"


class Matrix:
    """The steps, their undisturbed runs, and what faults do to them.

    Args:
        place: a folder, in which all is made.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.ground, self.work = place / "ground", place / "work"
        self.ends: dict[str, End] = {}
        self.ground.mkdir()
        end = Apart(partial(make_ground, Path()), self.ground).end()
        if end.code:
            raise RuntimeError(end.out + end.err)

    def undisturbed(self, name: str) -> End:
        """Run a step undisturbed, once; the second of two runs measures its time."""
        if name not in self.ends:
            for _ in range(2):
                self.make_room()
                cell = self.cell(name, End(0, "", "", 0, [], 0), random.Random(0))
                self.ends[name] = end = cell.run()
                if end.code:
                    raise RuntimeError(f"{name}: {end.err[-2000:]}")
                # Most of a small run is imports: its next fork has them
                for module in end.modules:
                    with contextlib.suppress(ImportError):
                        importlib.import_module(module)
            self.work.rename(self.whole(name))
        return self.ends[name]

    def whole(self, name: str) -> Path:
        """Name the folder of an undisturbed run."""
        return self.place / f"whole {name}"

    def make_room(self) -> None:
        """Make the folder anew in which the steps run; checkpoints may name its path."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()

    def cell(self, name: str, end: End, draw: random.Random, number: int = 0) -> Cell:
        """Give a step in its folder."""
        return Cell(STEPS[name], name, self.work, self.whole(name), end, draw, number)

    def round(self, name: str, fault: str, seed: int, number: int) -> tuple[Counter[str], str]:
        """Let a fault happen to a step, and let it go on.

        Returns:
            What is counted of it, and in words what is wrong; "" where nothing is.
        """
        end = self.undisturbed(name)
        self.make_room()
        draw = random.Random(f"{name} {fault} {seed}")
        cell, counts, wrong = self.cell(name, end, draw, number), Counter(rounds=1), list[str]()
        with cell.at_the_end:
            first = FAULTS[fault](cell)
            wrong += complaints(cell.step, first)
            counts["killed" if first.code < 0 else "sentence" if first.code else "to its end"] += 1
            last = cell.run(more=cell.step.again)
            if (
                last.code == 1
                and fault == "torn newest file"
                and not [*complaints(cell.step, last)]
            ):
                counts["refused"] += 1
            else:
                wrong += [*complaints(cell.step, last)] or [last.err] * bool(last.code)
                differ = [] if wrong else [*differences(cell.whole, cell.work)]
                counts["equal"] += not wrong and not differ
                wrong += differ[:4]
        counts["tracebacks"] += any("traceback" in line for line in wrong)
        return counts, f"{name}, {fault}, seed {seed}, {cell.how}: {'; '.join(wrong)}" * bool(wrong)


COLUMNS = ("rounds", "killed", "sentence", "to its end", "equal", "refused", "tracebacks")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1, help="of each step and fault")
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--step", default="", help="a part of the names of steps")
    parser.add_argument("--fault", default="", help="a part of the names of faults")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| step | fault | " + " | ".join(COLUMNS) + " |\n|---|---|" + "---:|" * len(COLUMNS))
    total = Counter[str]()
    with tempfile.TemporaryDirectory() as place:
        matrix = Matrix(Path(place))
        for name in STEPS:
            for fault in FAULTS:
                if args.step not in name or args.fault not in fault:
                    continue
                counts = Counter[str]()
                rounds = max(SIZES, args.rounds) if fault in AT_EACH_SIZE else args.rounds
                for number in range(rounds):
                    more, wrong = matrix.round(name, fault, args.seed + number, number)
                    counts += more
                    if wrong:
                        print(wrong, file=sys.stderr, flush=True)
                total += counts
                cells = " | ".join(str(counts[column]) for column in COLUMNS)
                print(f"| {name} | {fault} | {cells} |", flush=True)
    print("| all | | " + " | ".join(str(total[column]) for column in COLUMNS) + " |")


if __name__ == "__main__":
    main()
