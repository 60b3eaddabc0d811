"""Options as objects: a frozen dataclass for each group that several steps share.

A step makes its groups in `main`, from what was parsed; every other function takes a group, or the
values that it needs. What a group names is opened by `utils.opening`. Importing this costs nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from utils.errors import InputError
from utils.files import KEEP, normalised_folder
from utils.parser import Namespace
from utils.provenance import RESIZED_BEFORE

# Where neither an option nor a checkpoint says another
DATASET, IMAGE_SIZE, RESIZE = "CUB200", 224, "torch"
AnyGroup = TypeVar("AnyGroup", bound="Group")


@dataclass(frozen=True)
class Group:
    """Options that belong together; the fields have the options' names (`dest`)."""

    @classmethod
    def of(cls: type[AnyGroup], args: Namespace, **others: Any) -> AnyGroup:
        """Take them from parsed options.

        Args:
            args: the options; one that the step does not have is as the group has it by default.
            others: values that go before the options'.
        """
        values = vars(args) | others
        # argparse keeps options by the same names, so a new field needs no line here.
        return cls(
            **{field.name: values[field.name] for field in fields(cls) if field.name in values}
        )


@dataclass(frozen=True)
class RunOptions(Group):
    """Devices, precision and seed: what `opening.start` makes a `Runtime` of.

    Attributes:
        device_ids: GPUs, the main one first.
        gpu: one GPU in place of these.
        seed: of Python, NumPy and torch.
        amp: "off", "bf16" or "fp16".
        tf32: GPUs round float32 products to 10 bits.
        compile: models go through `torch.compile`.
        workers: processes that decode images.
        no_verify: content hashes of stored files are not checked.
    """

    device_ids: list[int]
    gpu: int | None
    seed: int
    amp: str
    tf32: bool
    compile: bool
    workers: int
    no_verify: bool = False


@dataclass(frozen=True)
class OutputOptions(Group):
    """Where results go, and what becomes of those that lie there.

    Attributes:
        out: root folder.
        suffix: end of the names of what is written.
        resume: the checkpoint that a run goes on from; "auto": its own; "": none.
        restart: what another run saved under a name is replaced.
        start_epoch: count from this epoch instead of the checkpoint's.
        keep: how many checkpoints of last epochs are kept; see `utils.files.earlier`.
    """

    out: str = "."
    suffix: str = ""
    resume: str = "auto"
    restart: bool = False
    start_epoch: int | None = None
    keep: int = KEEP


@dataclass(frozen=True)
class TrainingOptions(Group):
    """Optimiser, learning rates, epochs, and how often is saved.

    Attributes:
        optim: "SGD", "Adam" or "Muon".
        lr: the first learning rate.
        momentum: of SGD and Muon.
        weight_decay: of the optimiser.
        epochs: in all.
        logspace: decades that the rate falls over all epochs; 0: by steps.
        epoch_step: epochs between such steps.
        decay_factor: of such a step.
        one_cycle: share of all steps in which the rate rises to `lr`; then it falls to 0. 0: the
            rate is that of its epoch.
        label_smoothing: share of a label that is spread over all classes, in [0, 1).
        save_epoch: epochs between checkpoints.
        val_epoch: epochs between validations.
        print_freq: batches between readings of the loss.
        skip_nonfinite: steps of an epoch that may be left out; see `Fit`.
    """

    optim: str
    lr: float
    momentum: float
    weight_decay: float
    epochs: int
    logspace: float = 0
    epoch_step: int = 60
    decay_factor: float = 0.3
    one_cycle: float = 0
    label_smoothing: float = 0
    save_epoch: int = 1
    val_epoch: int = 1
    print_freq: int = 10
    skip_nonfinite: int = 0

    @property
    def is_extendable(self) -> bool:
        """Whether more epochs leave the rates of the first ones as they are."""
        return not (self.logspace or self.one_cycle)


@dataclass(frozen=True)
class DataOptions(Group):
    """Which images, how nets see them, and how they are read.

    Attributes:
        dataset: its name.
        name: what a folder is called, if `dataset` is "folder".
        data_root: folder of the data sets.
        train_path, val_path: folders of the splits' images, in place of those in `data_root`.
        image_size: S, pixels to a side.
        resize: what resizes images, "torch" or "pillow".
        sample_num: name of the sub-sampler that chooses training images, "50par_A"; "": none.
        sub_sampler_split: how a missing half is made, "first" or "random"; None: "first".
        seed: by which "random" draws.
        augment: of training images: "none", "reflect4" or "zero4".
        normalisation: a name or six numbers, by which nets read pixels; None: no option says it.
        normalisation1, normalisation2: the same of net A and of net B alone.
        cache_images: where decoded images are kept: "auto", "ram", "disk" or "off".
        batch_size: images of a step, over all processes.
    """

    dataset: str
    data_root: str
    image_size: int
    resize: str = RESIZE
    name: str | None = None
    train_path: str | None = None
    val_path: str | None = None
    sample_num: str = ""
    sub_sampler_split: str | None = None
    seed: int = 0
    augment: str = "none"
    normalisation: str | None = None
    normalisation1: str | None = None
    normalisation2: str | None = None
    cache_images: str = "auto"
    batch_size: int = 64

    @classmethod
    def of(cls, args: Namespace, *records: Mapping[str, Any], **others: Any) -> "DataOptions":
        """Take them from parsed options; what these do not name, from checkpoints.

        Args:
            args: the options.
            records: what the checkpoints of classifiers say under "data"; the first that says
                something is taken. The authors' say nothing: their nets saw 224 pixels.
            others: values that go before the options'.

        Raises:
            InputError: an image size that no net was trained at, or nets of several sizes and none
                is chosen.
        """
        record = next((record for record in records if "dataset" in record), {})
        values = vars(args) | others
        dataset = values.get("dataset") or record.get("dataset", DATASET)
        name, folder = values.get("name"), values.get("train_path") or values.get("val_path")
        if dataset == "folder" and not name:
            # What is given goes before what a file remembers
            name = folder_name(folder) if folder else record.get("name")
            name = name or dataset
        image_size = _image_size(values.get("image_size"), records)
        # In place of what was parsed: no group is half filled.
        resize = values.get("resize") or _resize(records)
        filled = {"dataset": dataset, "name": name, "image_size": image_size, "resize": resize}
        return super().of(args, **others | filled)

    @property
    def label(self) -> str:
        """The data set's part of file names: its name, or of a folder what that is called."""
        return self.name or self.dataset if self.dataset == "folder" else self.dataset

    @property
    def folders(self) -> dict[str, str]:
        """Where the images are, as `Provenance.folders` records it."""
        named = {name: getattr(self, name) for name in ("data_root", "train_path", "val_path")}
        return {name: str(path) for name, path in named.items() if path is not None}

    @property
    def names_normalisation(self) -> bool:
        """Whether an option says by which constants a net reads pixels."""
        return any((self.normalisation, self.normalisation1, self.normalisation2))

    def exchanged(self) -> "DataOptions":
        """Exchange what they say of nets A and B."""
        return replace(self, normalisation1=self.normalisation2, normalisation2=self.normalisation1)


def folder_name(folder: str) -> str:
    """Say what a folder of images is called: as it is, or of a "train" as the folder around it."""
    last = normalised_folder(folder)
    return last.parent.name if last.name in ("train", "test", "val") else last.name


def _image_size(asked: int | None, records: tuple[Mapping[str, Any], ...]) -> int:
    """Choose S: images have one size, which must be that of some net."""
    sizes = sorted({record["image_size"] for record in records if "image_size" in record})
    pixels = " and ".join(map(str, sizes))
    if asked is None and len(sizes) > 1:
        raise InputError(
            f"these networks were trained at {pixels} pixels, and images have one size: choose by"
            " --image_size; the other net then sees another size than in training"
        )
    if asked is not None and sizes and asked not in sizes:
        raise InputError(
            f"the network was trained at {pixels} pixels, --image_size says {asked}; leave"
            " the option out"
        )
    return asked or (sizes[0] if sizes else IMAGE_SIZE)


def _resize(records: tuple[Mapping[str, Any], ...]) -> str:
    """Say what resized the images of the first record that tells of them; else the usual way."""
    for record in records:
        if record.get("resize"):
            return str(record["resize"])
        if "image_size" in record:  # of an earlier version
            return RESIZED_BEFORE
    return RESIZE


@dataclass(frozen=True)
class LayerOptions(Group):
    """Where features of nets A and B are taken; see `models.layers.Layer`.

    Attributes:
        layer: of net A, a module or node by name, or "stage:N".
        conv_layer: the documented number in its place.
        layer2, conv_layer2: the same of net B; None: net A's.
        fc: numbers count in the classifier.
        channels_last: whose maps at the layer are (N, H, W, C): "A", "B", "both" or "none"; None:
            the nets are asked.
        image_size: S, pixels, at which stages are counted; None: the net's own.
    """

    layer: str | None = None
    conv_layer: int | None = None
    layer2: str | None = None
    conv_layer2: int | None = None
    fc: bool = False
    channels_last: str | None = None
    image_size: int | None = None

    @property
    def names_second(self) -> bool:
        """Whether an option names net B's layer."""
        return self.layer2 is not None or self.conv_layer2 is not None

    def channels_last_of(self, net: str) -> bool | None:
        """Say whether --channels_last means net "A" or "B"; None where the option is not given."""
        return None if self.channels_last is None else self.channels_last in (net, "both")

    def of_net(self, net: str) -> dict[str, Any]:
        """Give the arguments of `models.layers.Layer` for net "A" or "B"."""
        name, number = self.layer, self.conv_layer
        # --layer2 alone leaves net A's number behind: a name goes before a number in `Layer`.
        if net == "B" and self.names_second:
            name = self.layer2
            number = self.conv_layer if self.conv_layer2 is None else self.conv_layer2
        return {
            "name": name,
            "conv_layer": number,
            "fc": self.fc,
            "image_size": self.image_size,
            "channels_last": self.channels_last_of(net),
        }

    @property
    def second_hint(self) -> str:
        """How net B's layer is named, where none is and net A's is tried; the end of a message."""
        return "" if self.names_second else "; net B's own layer is named by --layer2"

    def exchanged(self) -> "LayerOptions":
        """Exchange what they say of whose maps are (N, H, W, C)."""
        last = {"A": "B", "B": "A"}.get(self.channels_last or "", self.channels_last)
        return replace(self, channels_last=last)
