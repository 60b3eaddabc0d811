"""Where features come from: the two networks, the layers,
the images. Written beside everything made of features.
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

_OF_IMAGES = ("dataset", "name", "split", "sample_num", "classes", "transform", "files_sha256")


@dataclass(frozen=True)
class NetSource:
    """One network of a pair; None is what nobody recorded.

    Attributes:
        arch: its architecture.
        layer: the node that its features are taken at.
        path: its checkpoint. Files move: the path is where to look, no part of what is compared.
        sha256: of that file.
        normalisation: the constants by which it reads pixels.
        top1_percent: its accuracy on the same images, as its checkpoint says it; what is measured
            is held against it.
        channels_last: what an option says of its maps at the layer; None: that is found out.
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
    """Both networks and the images that features were computed of.

    On disk it is a flat dictionary of plain values, `record` in a feature cache's index.json and
    `source` in a Trans-Net, a refined tail and a report: `dataset`, `name`, `split`, `sample_num`,
    `classes`, `transform`, `files_sha256`, and of both networks `arch_a`, `layer_a`, `path_a`,
    `checkpoint_a` (SHA-256), `arch_b`, …. Where both networks are normalised alike, and in all
    files of earlier versions, `mean` and `std` stand in `transform`, else `normalisation_a` and
    `normalisation_b` stand beside it.

    Attributes:
        a: the network that x comes from.
        b: the network that the target x* comes from.
        dataset: name of the data set.
        name: of the folder, where `dataset` is "folder".
        split: "train" or "val".
        sample_num: name of the sub-sampler that chose the images.
        classes: the data set's.
        transform: what turns a file into pixels, as `ImageData.decoding_record` gives it.
        files_sha256: of names, labels and contents of the images (`utils.data.contents`, which
            compares them and names what changed).
        arch: both architectures as file names have them, "alexnet" or "alexnet-resnet34", whatever
            the direction.
        label: the layers likewise: "30", "10-3".
        folders: where the images were, by the options that name them (`options.image_folders`).
            Like a net's path it says where to look, and is not compared.
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
        """Pixels to a side; the authors' files do not say,
        and their networks were trained on 224.
        """
        return (self.transform or {}).get("image_size", 224)

    def reversed(self) -> "Provenance":
        """Exchange A and B: what the direction B → A calls the same features."""
        return replace(self, a=self.b, b=self.a)

    def completed(self, **known: Any) -> "Provenance":
        """Fill in what is unknown."""
        return replace(
            self, **{name: value for name, value in known.items() if getattr(self, name) is None}
        )

    def differs(self, other: "Provenance", *, but: tuple[str, ...] = ()) -> str | None:
        """Say the first thing that both know and that is not the same.

        Args:
            other: what is compared.
            but: fields that may differ: a Trans-Net is fitted on "train" and measured on "val".

        Returns:
            "layer layer3.1.add of net A instead of layer2.1.add": this one's first, the other's
            behind; None if they agree. Networks are compared by content; exchanged ones are named
            as such.
        """
        nets = (self.a.sha256, self.b.sha256)
        if None not in nets and nets == (other.b.sha256, other.a.sha256) and nets[0] != nets[1]:
            return "nets A and B exchanged (the direction of --reverse)"
        for name in ("a", "b"):
            if found := _differs(
                getattr(self, name), getattr(other, name), f" of net {name.upper()}"
            ):
                return found
        return _differs(self, other, "", but=("a", "b", *but))

    def check(self, other: "Provenance", path: str | Path, *, but: tuple[str, ...] = ()) -> None:
        """Refuse a file that was made of other features than this run's.

        Args:
            other: what this run has.
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
        """Give the flat dictionary that is stored; what is unknown is left out."""
        record = {name: getattr(self, name) for name in _OF_IMAGES}
        record |= {"folders": self.folders, "arch": self.arch}
        record |= {"layer": self.label}  # the names that version 1 of the cache gave them
        for net, name in ((self.a, "a"), (self.b, "b")):
            record |= {
                f"arch_{name}": net.arch,
                f"layer_{name}": net.layer,
                f"path_{name}": net.path,
            }
            record |= {f"checkpoint_{name}": net.sha256, f"top1_percent_{name}": net.top1_percent}
            record[f"channels_last_{name}"] = net.channels_last
        alike = self.a.normalisation == self.b.normalisation
        if alike and self.a.normalisation and self.transform is not None:
            mean, std = map(list, self.a.normalisation)
            record["transform"] = {**self.transform, "mean": mean, "std": std}
        else:
            record |= {
                f"normalisation_{name}": net.normalisation
                for net, name in ((self.a, "a"), (self.b, "b"))
            }
        return {key: value for key, value in record.items() if value is not None}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Provenance":
        """Read what `to_record` gave; other keys are passed over,
        and the authors' files have none.
        """
        images = {name: record.get(name) for name in _OF_IMAGES}
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
    """Read one network from the flat dictionary;
    `common` is the normalisation of both, if it says one.
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

    A file that holds a factory may be moved or named from another folder: "nets.py:tiny",
    "../nets.py:tiny" and the module "zoo.nets:tiny" are the same.
    """
    if first == second or ".py:" not in f"{first} {second}":
        return first == second
    return _factory(first) == _factory(second)


def _factory(arch: str) -> tuple[str, str]:
    """Give the name of a factory's module, without its package or folder, and its own."""
    source, _, factory = arch.rpartition(":")
    module = PurePath(source).stem if source.endswith(".py") else source.rpartition(".")[2]
    return module, factory


def _differs(mine: Any, theirs: Any, of: str, but: tuple[str, ...] = ()) -> str | None:
    """Compare two records of one type field by field; None is what one of them does not know."""
    for entry in fields(mine):
        ours, others = getattr(mine, entry.name), getattr(theirs, entry.name)
        if (
            entry.name in but
            or not entry.compare
            or ours is None
            or others is None
            or ours == others
        ):
            continue
        if entry.name == "arch" and same_arch(ours, others):
            continue
        if entry.name == "sha256":
            return (
                f"another{of.removeprefix(' of')}: {mine.path} ({ours[:8]}) instead of"
                f" {theirs.path} ({others[:8]})"
            )
        if entry.name == "normalisation":
            return (
                f"normalisation {normalisation_words(ours)}{of} instead of"
                f" {normalisation_words(others)}"
            )
        if entry.name == "classes":
            return f"{len(ours)} other classes than these {len(others)}"
        if entry.name == "transform":
            keys = [
                key
                for key in ours.keys() & others.keys()
                if key != "view" and ours[key] != others[key]
            ]
            if not keys:  # the view follows from the data set and the split
                continue
            key = min(keys)
            return f"{key} {ours[key]} instead of {others[key]}"
        return f"{entry.name} {ours}{of} instead of {others}"
    return None
