"""What a run's images are: name, label and SHA-256 of every file,
so that a run and its data are bound to each other.

A checkpoint and a feature cache record the `Contents` of their images. Whoever goes on with one
compares: a folder that was moved or copied as a whole is equal, and a file that was edited,
removed, added, renamed or moved to another class is named. Size and times of a file only spare its
second reading: `read_contents` keeps the hashes that it has computed beside the decoded images.
"""

import contextlib
import hashlib
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from utils.files import replacing
from utils.progress import Progress

if TYPE_CHECKING:
    from utils.data.images import ImageData

HASH_BYTES = 16  # of each file's SHA-256, which are kept: no two files agree in 128 bits by chance
WORTH_KEEPING = 100_000_000  # bytes: less is read again in a few tenths of a second
# A file this young may change again within the resolution of its times
UNSETTLED_NS = 2_000_000_000
CHUNK = 64  # files that a thread reads at a time
NAMED = 3  # files of each kind of change


@dataclass(frozen=True, eq=False)
class Contents:
    """The images of one split.

    Attributes:
        names: POSIX paths relative to the data set's folder.
        labels: int64 (n,), or (n, classes) of 0 and 1.
        hashes: uint8 (n, 16), the beginning of each file's SHA-256; zeros where it could not be
            read.
    """

    names: list[str]
    labels: Tensor
    hashes: Tensor

    @property
    def sha256(self) -> str:
        """One digest over all."""
        digest = hashlib.sha256("\0".join(self.names).encode())
        digest.update(self.labels.to(torch.int64).numpy().tobytes())
        digest.update(self.hashes.numpy().tobytes())
        return digest.hexdigest()

    def to_record(self) -> dict[str, Any]:
        """Give what a checkpoint holds: tensors and plain values, some 20 bytes a file."""
        names = np.frombuffer(zlib.compress("\0".join(self.names).encode()), np.uint8)
        smallest = (
            torch.int16 if self.labels.ndim == 1 and self.labels.max() < 2**15 else torch.int64
        )
        labels = self.labels.to(smallest if self.labels.ndim == 1 else torch.uint8)
        return {
            "sha256": self.sha256,
            "names": torch.from_numpy(names.copy()),
            "labels": labels,
            "hashes": self.hashes,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Contents":
        """Read what `to_record` gave."""
        names = zlib.decompress(record["names"].numpy().tobytes()).decode().split("\0")
        return cls(names, record["labels"].to(torch.int64), record["hashes"])

    def changes(self, now: "Contents") -> str:
        """Say what became of these images: "1 edited (a/1.png),
        2 removed (b/7.png, b/8.png)"; "" where they agree.

        A file whose content turns up under another name was moved to another class if its label
        differs, else renamed.
        """
        labels, labels_now = (contents.labels.to(torch.int64) for contents in (self, now))
        if (
            self.names == now.names
            and torch.equal(self.hashes, now.hashes)
            and torch.equal(labels, labels_now)
        ):
            return ""
        before, after = self._by_name(), now._by_name()
        kinds = {
            "edited": [
                name for name in before if name in after and before[name][0] != after[name][0]
            ],
            "with another label": [
                name
                for name in before
                if name in after
                and before[name][0] == after[name][0]
                and before[name][1] != after[name][1]
            ],
            "moved to another class": [],
            "renamed": [],
            "removed": [],
            "added": [],
        }
        appeared: dict[bytes, list[str]] = {}
        for name in after.keys() - before.keys():
            appeared.setdefault(after[name][0], []).append(name)
        for names in appeared.values():
            names.sort(reverse=True)
        for name in [name for name in before if name not in after]:
            content, label = before[name]
            if not (candidates := appeared.get(content)):
                kinds["removed"].append(name)
                continue
            new = candidates.pop()
            kinds["renamed" if after[new][1] == label else "moved to another class"].append(
                f"{name} → {new}"
            )
        kinds["added"] = sorted(name for names in appeared.values() for name in names)
        return _in_words(kinds) or "in another order"

    def _by_name(self) -> dict[str, tuple[bytes, bytes]]:
        """Give content and label of each file."""
        labels = self.labels.to(torch.int64).numpy()
        hashes = self.hashes.numpy()
        return {
            name: (hashes[i].tobytes(), labels[i].tobytes()) for i, name in enumerate(self.names)
        }


def _in_words(kinds: Mapping[str, Sequence[str]]) -> str:
    parts = []
    for kind, names in kinds.items():
        if names:
            parts.append(
                f"{len(names):,} {kind}"
                f" ({', '.join(names[:NAMED])}{', …' if len(names) > NAMED else ''})"
            )
    return ", ".join(parts)


def read_contents(data: "ImageData", *, cache_dir: str | Path, quiet: bool = False) -> Contents:
    """Hash the files of a split in threads, once: the data set keeps the result as its `contents`.

    Args:
        data: the images. A file that cannot be read has a hash of zeros: whoever decodes it says
            why.
        cache_dir: where hashes are kept, if there were many bytes to read and it can be written to.
        quiet: show no progress.
    """
    if data.contents is None:
        data.contents = Contents(
            data.paths, data.targets, _hash_files(data, Path(cache_dir), quiet)
        )
    return data.contents


def _hash_files(data: "ImageData", cache_dir: Path, quiet: bool) -> Tensor:
    """Hash every file that is not the one whose hash is kept: uint8 (n, 16)."""
    names, root = data.paths, hashlib.sha256(os.fsencode(data.root)).hexdigest()[:16]
    kept = cache_dir / f"hashes_{root}.npz"
    known = _read_kept(kept)
    # What tells that a file is the one that was read before
    stamps = np.zeros((len(names), 4), np.int64)
    hashes = np.zeros((len(names), HASH_BYTES), np.uint8)
    began = time.time_ns()

    def read(chunk: range) -> int:
        total = 0
        for index in chunk:
            try:
                with data.file(index).open("rb") as opened:
                    status = os.fstat(opened.fileno())
                    stamps[index] = (
                        status.st_size,
                        status.st_mtime_ns,
                        status.st_ctime_ns,
                        status.st_ino,
                    )
                    before = known.get(names[index])
                    if before is not None and np.array_equal(before[0], stamps[index]):
                        hashes[index] = before[1]
                        continue
                    digest = hashlib.sha256()
                    while block := opened.read(1 << 20):
                        digest.update(block)
                    hashes[index] = np.frombuffer(digest.digest()[:HASH_BYTES], np.uint8)
                    total += status.st_size
            except OSError:
                continue
        return total

    chunks = [range(start, min(start + CHUNK, len(names))) for start in range(0, len(names), CHUNK)]
    # Hashing and reading release the interpreter's lock
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        progress = Progress(
            pool.map(read, chunks), f"hashing {data.split} images", total=len(chunks), quiet=quiet
        )
        read_bytes = sum(progress)
    finally:
        pool.shutdown(cancel_futures=True)
    if read_bytes > WORTH_KEEPING:
        settled = stamps[:, 1:3].max(axis=1) < began - UNSETTLED_NS
        _keep(
            kept, known, [names[i] for i in settled.nonzero()[0]], stamps[settled], hashes[settled]
        )
    return torch.from_numpy(hashes)


Known = dict[str, tuple[np.ndarray, np.ndarray]]


def _read_kept(path: Path) -> Known:
    """Read what `_keep` wrote; nothing where there is none, or where it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = zlib.decompress(arrays["names"].tobytes()).decode().split("\0")
            return dict(
                zip(names, zip(arrays["stamps"], arrays["hashes"], strict=True), strict=True)
            )
    except Exception:
        # A cut-off archive raises nearly anything; the hashes are then computed again
        return {}


def _keep(
    path: Path, known: Known, names: list[str], stamps: np.ndarray, hashes: np.ndarray
) -> None:
    """Write hashes beside those of other files of the folder;
    a folder that cannot be written keeps none.
    """
    known = known | dict(zip(names, zip(stamps, hashes)))
    if not known:
        return
    joined = np.frombuffer(zlib.compress("\0".join(known).encode()), np.uint8)
    stamps, hashes = (np.stack(column) for column in zip(*known.values()))
    with contextlib.suppress(OSError), replacing(path) as temporary:
        np.savez(temporary, names=joined, stamps=stamps, hashes=hashes)
