"""Crops of photos, written in parallel: each file whole or not at all, and none twice."""

import functools
import json
import multiprocessing
import os
import signal
import stat
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from PIL import Image

from utils.data.datasets import printable
from utils.errors import InputError
from utils.files import replacing
from utils.progress import Progress

JPEG_QUALITY = 95
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Crop:
    """One image to write.

    Attributes:
        source: the photo.
        box: left, top, right, bottom in pixels of the photo as stored, right and bottom exclusive.
        output: POSIX path of the crop below the data set's folder,
            `{train|test}/{class}/{name}.jpg`.
    """

    source: Path
    box: Box
    output: str


@dataclass(frozen=True)
class Problem:
    """An entry of a data set that cannot be used: the kind of fault, and where it is."""

    kind: str
    where: str


@dataclass
class Listing:
    """The images that a data set's lists name.

    Attributes:
        classes: names of the folders to make; sorted, they are in the order of official class ids.
        crops: to make.
        files: images to write unchanged: by output path, as of a crop, the function that gives
            the bytes.
        problems: entries that cannot become an image.
        notes: lines for the user that are no errors.
    """

    classes: list[str]
    crops: list[Crop] = field(default_factory=list)
    files: dict[str, Callable[[], bytes]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, split: str, name: str, source: Path, box: Box) -> None:
        """Append a crop.

        Args:
            split: "train" or "test".
            name: `{class}/{photo}`; its suffix becomes .jpg, a byte that is no UTF-8 becomes `%xff`.
            source: the photo.
            box: of the crop.
        """
        output = PurePosixPath(split, printable(name).replace("\\", "%")).with_suffix(".jpg")
        self.crops.append(Crop(source, box, output.as_posix()))

    def problem(self, kind: str, where: object) -> None:
        """Append a problem."""
        self.problems.append(Problem(kind, printable(str(where))))


@dataclass(frozen=True)
class Outcome:
    """The result of one crop: a `problem`, `made`, or else up to date already.

    Attributes:
        problem: the reason why there is no crop.
        made: written in this run; the next two fields hold only then.
        clamped: the box went over the photo's border.
        mode: Pillow's name of the photo's colours, such as "L" for grey.
    """

    problem: Problem | None = None
    made: bool = False
    clamped: bool = False
    mode: str = ""


def clamp(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Round a box to whole pixels and cut it at the borders of an image (width, height)."""
    x_0, y_0, x_1, y_1 = (round(edge) for edge in box)
    width, height = size
    return max(x_0, 0), max(y_0, 0), min(x_1, width), min(y_1, height)


def crop_one(crop: Crop, target: Path) -> Outcome:
    """Write one crop below `target` as an RGB JPEG, unless it is there already.

    Pixels are taken as stored, without EXIF rotation: boxes are measured on these. The JPEG's
    comment records the photo's name, its length in bytes and the box. A crop with the same record
    is up to date.

    Raises:
        OSError: the crop cannot be written.
    """
    destination = target / crop.output
    where = printable(crop.source)
    try:
        status = crop.source.stat()
        source_bytes = status.st_size
        record = json.dumps(
            {"photo": printable(crop.source.name), "bytes": source_bytes, "box": crop.box}
        ).encode()
        # Before the photo is opened: a second run reads only records.
        if _is_current(destination, record):
            return Outcome()
        if not stat.S_ISREG(status.st_mode):  # to open a pipe waits for ever
            return Outcome(Problem("unreadable photo", f"{where}: no regular file"))
        with Image.open(crop.source) as photo:
            box = clamp(crop.box, photo.size)
            if box[0] >= box[2] or box[1] >= box[3]:
                return Outcome(
                    Problem("empty box", f"{where}: {crop.box} in an image of {photo.size} pixels")
                )
            mode = photo.mode
            pixels = photo.crop(box).convert("RGB")
    except FileNotFoundError:
        return Outcome(Problem("missing photo", where))
    except Exception as error:  # decoders raise nearly anything on broken bytes
        return Outcome(Problem("unreadable photo", f"{where}: {printable(str(error))}"))
    with replacing(destination) as temporary:
        pixels.save(temporary, "JPEG", quality=JPEG_QUALITY, comment=record)
    return Outcome(made=True, clamped=box != tuple(round(edge) for edge in crop.box), mode=mode)


def _is_current(path: Path, record: bytes) -> bool:
    """Whether `path` is a whole JPEG whose comment, near its beginning, is `record`."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    # FF D9 ends every whole JPEG ("end of image").
    return record in content[: len(record) + 64] and content.endswith(b"\xff\xd9")


def crop_all(crops: list[Crop], target: Path, workers: int) -> list[Outcome]:
    """Write every crop below `target` on `workers` processes; outcomes in the order of `crops`.

    Raises:
        InputError: two crops have one output, a crop cannot be written, or a process died.
    """
    # Two processes that write one file would leave one crop of two, without a word.
    outputs = Counter(crop.output for crop in crops)
    if crops and outputs.most_common(1)[0][1] > 1:
        twice = outputs.most_common(1)[0][0]
        raise InputError(
            f"two objects would both become {target / twice}; remove one of them from the lists"
        )
    work = functools.partial(crop_one, target=target)
    try:
        if workers <= 1:
            return list(Progress(map(work, crops), target.name, total=len(crops)))
        with ProcessPoolExecutor(workers, initializer=_start_process) as pool:
            return list(
                Progress(pool.map(work, crops, chunksize=16), target.name, total=len(crops))
            )
    except BrokenProcessPool:
        raise InputError(
            "a cropping process was killed; run the same command again, with a smaller -j"
        ) from None
    except OSError as error:
        raise InputError(
            f"cannot write below {target} ({error}); make room and run the same command again"
        ) from None


def _start_process() -> None:
    """Leave Ctrl-C to the parent process, and end when it ends.

    On Ctrl-C the parent lets every process finish its crop. If the parent is killed, nobody would.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    # `join` of the parent returns when it is gone; a daemon thread keeps nobody alive.
    threading.Thread(target=end_with_parent, daemon=True).start()


def clear_target(target: Path, outputs: set[str]) -> None:
    """Remove unfinished files of a killed run, and refuse images of other options.

    Args:
        target: the data set's folder.
        outputs: POSIX paths below it that these options write.

    Raises:
        InputError: `target` has other images; an earlier run with other options made them.
    """
    files = {
        path.relative_to(target).as_posix(): path
        for path in target.glob("t*/*/*")
        if path.is_file()
    }
    # Left by a killed run: `replacing` names unfinished files so.
    for path in files.values():
        if path.name.startswith(".") and ".part" in path.suffixes:
            path.unlink()
    strangers = sorted(
        name
        for name, path in files.items()
        if name not in outputs and not path.name.startswith(".")
    )
    if strangers:
        raise InputError(
            f"{target} holds {len(strangers):,} images that these options would not write, as"
            f" {strangers[0]}; delete the folder or choose another --out"
        )
