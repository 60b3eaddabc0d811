"""The identity of a run's images: name, label and SHA-256 of every file.

A checkpoint and a feature cache record the `Contents` of their images, and a step that continues
from one compares them. A folder that was moved or copied as a whole is equal. A file that was
edited, removed, added, renamed or moved to another class is named. `read_contents` keeps the hashes
beside the decoded images; a file is read again when its size or times have changed.
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

from utils.arrays import read_arrays
from utils.errors import InputError
from utils.files import replacing
from utils.progress import Progress

if TYPE_CHECKING:
    from utils.data.images import ImageData

HASH_BYTES = 16  # kept of each SHA-256: no two files agree in 128 bits by chance
WORTH_KEEPING = 100_000_000  # bytes; less is hashed again in a few tenths of a second
# Nanoseconds. A younger file may change again without a change of its times, whose resolution is
# up to 2 s (FAT); its hash is not kept.
UNSETTLED_NS = 2_000_000_000
CHUNK = 64  # files that a thread reads at a time
NAMED = 3  # files that a message names of each kind of change


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
        """The hexadecimal SHA-256 of names, labels and hashes together."""
        digest = hashlib.sha256("\0".join(self.names).encode())
        digest.update(self.labels.to(torch.int64).numpy().tobytes())
        digest.update(self.hashes.numpy().tobytes())
        return digest.hexdigest()

    def to_record(self) -> dict[str, Any]:
        """Give the record in a checkpoint: tensors and plain values, about 20 bytes a file."""
        names = np.frombuffer(zlib.compress("\0".join(self.names).encode()), np.uint8)
        return {
            "sha256": self.sha256,
            "names": torch.from_numpy(names.copy()),
            "labels": self.labels.to(self._smallest_type()),
            "hashes": self.hashes,
        }

    def _smallest_type(self) -> torch.dtype:
        """Choose the smallest dtype of checkpoints that holds the labels."""
        if self.labels.ndim > 1:  # 0 and 1 for each class
            return torch.uint8
        return torch.int16 if self.labels.max() < 2**15 else torch.int64

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Contents":
        """Read a record of `to_record`."""
        names = zlib.decompress(record["names"].numpy().tobytes()).decode().split("\0")
        return cls(names, record["labels"].to(torch.int64), record["hashes"])

    def changes(self, now: "Contents") -> str:
        """Say how the images differ from later ones.

        A file whose content turns up under another name was moved to another class if its label
        differs, else renamed.

        Args:
            now: the later images.

        Returns:
            "1 edited (a/1.png), 2 removed (b/7.png, b/8.png)"; "" where they agree.
        """
        labels, labels_now = (contents.labels.to(torch.int64) for contents in (self, now))
        same_files = self.names == now.names and torch.equal(self.hashes, now.hashes)
        if same_files and torch.equal(labels, labels_now):
            return ""
        # By name, not by position: one new file would shift all others.
        before, after = self._by_name(), now._by_name()
        kinds: dict[str, list[str]] = {"edited": [], "with another label": []}
        for name in [name for name in before if name in after]:
            (content, label), (content_now, label_now) = before[name], after[name]
            if content != content_now:
                kinds["edited"].append(name)
            elif label != label_now:
                kinds["with another label"].append(name)
        kinds |= _moves(before, after)
        return _in_words(kinds) or "in another order"

    def _by_name(self) -> dict[str, tuple[bytes, bytes]]:
        """Give the bytes of hash and label of each file."""
        labels = self.labels.to(torch.int64).numpy()
        hashes = self.hashes.numpy()
        return {
            name: (hashes[i].tobytes(), labels[i].tobytes()) for i, name in enumerate(self.names)
        }


def _moves(
    before: Mapping[str, tuple[bytes, bytes]], after: Mapping[str, tuple[bytes, bytes]]
) -> dict[str, list[str]]:
    """Match the files that are gone with the new ones of the same content.

    Args:
        before: hash and label of each earlier file, by name.
        after: the same of the later files.

    Returns:
        The names by kind of change: moved, renamed, removed, added.
    """
    moves: dict[str, list[str]] = {
        kind: [] for kind in ("moved to another class", "renamed", "removed", "added")
    }
    new_by_content: dict[bytes, list[str]] = {}
    for name in after.keys() - before.keys():
        new_by_content.setdefault(after[name][0], []).append(name)
    for names in new_by_content.values():
        names.sort(reverse=True)  # `pop` takes the first in the alphabet
    for name in [name for name in before if name not in after]:
        # By the old order: of several files of one content, the first old one takes the first new
        # name.
        content, label = before[name]
        if not (candidates := new_by_content.get(content)):
            moves["removed"].append(name)
            continue
        new = candidates.pop()
        kind = "renamed" if after[new][1] == label else "moved to another class"
        moves[kind].append(f"{name} → {new}")
    moves["added"] = sorted(name for names in new_by_content.values() for name in names)
    return moves


def _in_words(kinds: Mapping[str, Sequence[str]]) -> str:
    """Write names by kind of change: "1 edited (a/1.png), 2 removed (…)"."""
    phrases = []
    for kind, names in kinds.items():
        if names:
            examples = ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
            phrases.append(f"{len(names):,} {kind} ({examples})")
    return ", ".join(phrases)


def read_contents(data: "ImageData", *, cache_dir: str | Path, quiet: bool = False) -> Contents:
    """Hash the files of a split in threads, once; the data set keeps the result as `contents`.

    Args:
        data: the images. A file that cannot be read has a hash of zeros; decoding it says why.
        cache_dir: where hashes are kept, if many bytes were read and the folder can be written to.
        quiet: show no progress.
    """
    if data.contents is None:
        data.contents = Contents(
            data.paths, data.targets, _hash_files(data, Path(cache_dir), quiet)
        )
    return data.contents


def _hash_files(data: "ImageData", cache_dir: Path, quiet: bool) -> Tensor:
    """Hash every file of a split whose hash is not kept, or whose stamps have changed.

    Returns:
        uint8 (n, 16).
    """
    # One file of hashes for each folder, named by its path
    names, root = data.paths, hashlib.sha256(os.fsencode(data.root)).hexdigest()[:16]
    path = cache_dir / f"hashes_{root}.npz"
    kept = _read_kept(path)
    # Size, both times (ns) and inode: while these stay, the content is taken to be the same.
    stamps = np.zeros((len(names), 4), np.int64)
    hashes = np.zeros((len(names), HASH_BYTES), np.uint8)
    began = time.time_ns()

    def read(chunk: range) -> int:
        """Fill rows of `stamps` and `hashes`, and count the bytes that were hashed."""
        hashed_bytes = 0
        for index in chunk:
            try:
                with data.file(index).open("rb") as file:
                    # Of the open file: its name may meanwhile mean another one.
                    status = os.fstat(file.fileno())
                    times = status.st_mtime_ns, status.st_ctime_ns
                    stamps[index] = (status.st_size, *times, status.st_ino)
                    earlier = kept.get(names[index])
                    if earlier is not None and np.array_equal(earlier[0], stamps[index]):
                        hashes[index] = earlier[1]
                        continue
                    digest = hashlib.sha256()
                    while block := file.read(1 << 20):
                        digest.update(block)
                    hashes[index] = np.frombuffer(digest.digest()[:HASH_BYTES], np.uint8)
                    hashed_bytes += status.st_size
            except OSError:
                continue
        return hashed_bytes

    chunks = [range(start, min(start + CHUNK, len(names))) for start in range(0, len(names), CHUNK)]
    # Threads suffice: hashing and reading release the interpreter's lock.
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
        settled_names = [names[i] for i in settled.nonzero()[0]]
        _keep(path, kept, settled_names, stamps[settled], hashes[settled])
    return torch.from_numpy(hashes)


Kept = dict[str, tuple[np.ndarray, np.ndarray]]  # stamps (4,) and hash (16,) by file name


def _read_kept(path: Path) -> Kept:
    """Read the hashes that `_keep` wrote; none where the file is missing or damaged."""
    try:
        arrays = read_arrays(path, "it is made anew")
        stamps, hashes = arrays["stamps"], arrays["hashes"]
        names = zlib.decompress(arrays["names"].tobytes()).decode().split("\0")
        if (stamps.shape, hashes.shape) != ((len(names), 4), (len(names), HASH_BYTES)):
            return {}
        return dict(zip(names, zip(stamps, hashes)))
    except (InputError, KeyError, ValueError, zlib.error):  # the hashes are then computed again
        return {}


def _keep(path: Path, kept: Kept, names: list[str], stamps: np.ndarray, hashes: np.ndarray) -> None:
    """Add hashes to those that are kept of a folder; one that cannot be written keeps none."""
    kept = kept | dict(zip(names, zip(stamps, hashes)))
    if not kept:
        return
    joined = np.frombuffer(zlib.compress("\0".join(kept).encode()), np.uint8)
    stamps, hashes = (np.stack(column) for column in zip(*kept.values()))
    with contextlib.suppress(OSError), replacing(path) as temporary:
        np.savez(temporary, names=joined, stamps=stamps, hashes=hashes)
