"""The origin of features: two networks, their layers, the images.

It is written into everything that is made of features.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePath
from typing import Any

from utils.errors import InputError
from utils.normalisation import (
    Normalisation,
    as_normalisation,
    normalisation_words,
    recorded_normalisation,
)

RESIZED_BEFORE = "pillow"  # what resized images where a record of them does not say it
_OF_IMAGES = ("dataset", "name", "split", "sample_num", "classes", "transform", "files_sha256")


@dataclass(frozen=True)
class NetSource:
    """One network of a pair; None is a fact that is not recorded.

    Attributes:
        arch: its architecture.
        layer: the node whose output its features are.
        path: its checkpoint. Files move, so the path is where to look; it is not compared.
        sha256: of that file, hexadecimal.
        normalisation: the constants by which it normalises pixels.
        top1_percent: its accuracy on the same images as its checkpoint records it, which a
            measurement is compared with.
        channels_last: an option's word on its maps at the layer; None: see `models.layout`.
    """

    arch: str | None = None
    layer: str | None = None
    path: str | None = field(default=None, compare=False)
    sha256: str | None = None
    normalisation: Normalisation | None = None
    top1_percent: float | None = field(default=None, compare=False)
    channels_last: bool | None = None


@dataclass(frozen=True)
class Provenance:
    """Both networks and the images of some features.

    On disk it is a flat dictionary of plain values: `record` in a feature cache's index.json,
    `source` in a Trans-Net, a refined tail and a report. It has `dataset`, `name`, `split`,
    `sample_num`, `classes`, `transform`, `files_sha256`, and of each network `arch_a`, `layer_a`,
    `path_a`, `checkpoint_a` (SHA-256), `arch_b`, …. If both networks have the same normalisation,
    `transform` has it as `mean` and `std`, as in all files of earlier versions. Otherwise the
    record has `normalisation_a` and `normalisation_b`.

    Attributes:
        a: the network that x comes from.
        b: the network that the target x* comes from.
        dataset: name of the data set.
        name: of the folder, if `dataset` is "folder".
        split: "train" or "val".
        sample_num: name of the sub-sampler that chose the images.
        classes: names of the data set's classes.
        transform: the way from a file to pixels, as `ImageData.decoding_record` gives it.
        files_sha256: of names, labels and contents of the images. `utils.data.contents` compares
            these and names what changed.
        arch: both architectures as in file names, "alexnet" or "alexnet-resnet34", whatever the
            direction.
        label: both layers as in file names: "30", "10-3".
        folders: of the images, by the options that name them (`DataOptions.folders`). Like a
            net's path they are where to look, and are not compared.
    """

    a: NetSource = NetSource()
    b: NetSource = NetSource()
    dataset: str | None = None
    name: str | None = None
    split: str | None = None
    sample_num: str | None = None
    classes: list[str] | None = None
    transform: Mapping[str, Any] | None = None
    files_sha256: str | None = field(default=None, compare=False)
    arch: str | None = field(default=None, compare=False)
    label: str | None = field(default=None, compare=False)
    folders: Mapping[str, str] | None = field(default=None, compare=False)

    @property
    def image_size(self) -> int:
        """Pixels to a side; 224 for the authors' files, which do not record it."""
        return (self.transform or {}).get("image_size", 224)

    @property
    def resize(self) -> str | None:
        """What resized the images, "torch" or "pillow"; None for the authors' files."""
        return None if self.transform is None else self.transform.get("resize", RESIZED_BEFORE)

    def reversed(self) -> "Provenance":
        """Exchange A and B: the same features in the direction B → A."""
        return replace(self, a=self.b, b=self.a)

    def completed(self, **facts: Any) -> "Provenance":
        """Fill in fields that are None."""
        unknown = {name: fact for name, fact in facts.items() if getattr(self, name) is None}
        return replace(self, **unknown)

    def differs(self, other: "Provenance", *, but: tuple[str, ...] = ()) -> str | None:
        """Say the first difference among the fields that both record.

        Args:
            other: is compared with this one.
            but: fields that may differ: a Trans-Net is fitted on "train" and measured on "val".

        Returns:
            "layer layer3.1.add of net A instead of layer2.1.add": this one's value first, then the
            other's; None if they agree. Networks are compared by content, and exchanged ones are
            named as such.
        """
        # The same two files in each other's place
        nets = (self.a.sha256, self.b.sha256)
        if None not in nets and nets == (other.b.sha256, other.a.sha256) and nets[0] != nets[1]:
            return "nets A and B exchanged (the direction of --reverse)"
        return (
            _differs(self.a, other.a, " of net A")
            or _differs(self.b, other.b, " of net B")
            or _differs(self, other, "", but=("a", "b", *but))
        )

    def check(self, other: "Provenance", path: str | Path, *, but: tuple[str, ...] = ()) -> None:
        """Refuse a file that was made of other features than this run's.

        Args:
            other: of this run's features.
            path: the file that this provenance was read from.
            but: see `differs`.

        Raises:
            InputError: they differ; the message has the first difference.
        """
        if difference := self.differs(other, but=but):
            raise InputError(
                f"{path} was made with {difference}; name what it was made of, or make another one"
            )

    def to_record(self) -> dict[str, Any]:
        """Give the flat dictionary that is stored, without what is not recorded."""
        record = {name: getattr(self, name) for name in _OF_IMAGES}
        # "layer" is the name of `label` since version 1 of the cache's format.
        record |= {"folders": self.folders, "arch": self.arch, "layer": self.label}
        nets = {"a": self.a, "b": self.b}
        for name, net in nets.items():
            record |= {
                f"arch_{name}": net.arch,
                f"layer_{name}": net.layer,
                f"path_{name}": net.path,
                f"checkpoint_{name}": net.sha256,
                f"top1_percent_{name}": net.top1_percent,
                f"channels_last_{name}": net.channels_last,
            }
        alike = self.a.normalisation == self.b.normalisation
        if alike and self.a.normalisation and self.transform is not None:
            mean, std = map(list, self.a.normalisation)
            record["transform"] = {**self.transform, "mean": mean, "std": std}
        else:
            record |= {f"normalisation_{name}": net.normalisation for name, net in nets.items()}
        return {key: value for key, value in record.items() if value is not None}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Provenance":
        """Read a record of `to_record`; other keys are ignored, and the authors' files have none.

        Args:
            record: the flat dictionary.
        """
        images = {name: record.get(name) for name in _OF_IMAGES}
        # Normalisation belongs to the networks: take it out of the transform, where records of
        # equal constants have it.
        common = recorded_normalisation(images["transform"] or {})
        if common is not None:
            transform = dict(record["transform"])
            images["transform"] = {
                name: transform[name] for name in transform if name not in ("mean", "std")
            }
        a, b = (_net(record, name, common) for name in "ab")
        others = {
            "arch": record.get("arch"),
            "label": record.get("layer"),
            "folders": record.get("folders"),
        }
        return cls(a=a, b=b, **images, **others)


def _net(record: Mapping[str, Any], name: str, common: Normalisation | None) -> NetSource:
    """Read one network from the flat dictionary.

    Args:
        record: the dictionary.
        name: "a" or "b".
        common: the normalisation of both networks, if the record has one.
    """
    arch, layer, path, digest = (
        record.get(f"{key}_{name}") for key in ("arch", "layer", "path", "checkpoint")
    )
    of_net = record.get(f"normalisation_{name}")
    constants = common if of_net is None else as_normalisation(of_net)
    others = (record.get(f"{key}_{name}") for key in ("top1_percent", "channels_last"))
    return NetSource(arch, layer, path, digest, constants, *others)


def same_arch(first: str, second: str) -> bool:
    """Whether two names mean the same architecture.

    A factory's file may be moved, or named from another folder: "nets.py:tiny", "../nets.py:tiny"
    and the module "zoo.nets:tiny" are the same.
    """
    if first == second or ".py:" not in f"{first} {second}":
        return first == second
    return _factory(first) == _factory(second)


def _factory(arch: str) -> tuple[str, str]:
    """Give the names of a factory's module, without package or folder, and of the factory."""
    source, _, factory = arch.rpartition(":")
    module = PurePath(source).stem if source.endswith(".py") else source.rpartition(".")[2]
    return module, factory


def _differs(mine: Any, theirs: Any, of: str, but: tuple[str, ...] = ()) -> str | None:
    """Compare two records of one type field by field; a field that is None in one is skipped.

    Args:
        mine: a `NetSource` or a `Provenance`.
        theirs: another of that type.
        of: names the network in the result, " of net A".
        but: fields that may differ.

    Returns:
        The first difference in words, or None.
    """
    for entry in fields(mine):
        name, first, second = entry.name, getattr(mine, entry.name), getattr(theirs, entry.name)
        if name in but or not entry.compare or None in (first, second) or first == second:
            continue
        if name == "arch" and same_arch(first, second):
            continue
        if name == "sha256":
            return (
                f"another{of.removeprefix(' of')}: {mine.path} ({first[:8]}) instead of"
                f" {theirs.path} ({second[:8]})"
            )
        if name == "normalisation":
            return (
                f"normalisation {normalisation_words(first)}{of} instead of"
                f" {normalisation_words(second)}"
            )
        if name == "classes":
            return f"{len(first)} other classes than these {len(second)}"
        if name == "transform":
            # Not "view": it follows from the data set and the split, which are compared.
            # Records of earlier versions do not say what resized.
            first, second = ({"resize": RESIZED_BEFORE, **record} for record in (first, second))
            keys = first.keys() & second.keys() - {"view"}
            if different := [key for key in keys if first[key] != second[key]]:
                key = min(different)
                return f"{key} {first[key]} instead of {second[key]}"
            continue
        return f"{name} {first}{of} instead of {second}"
    return None
