"""Command-line options that several steps share, declared once."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Subset

from utils.data.image_cache import cache_images
from utils.data.images import ImageData, load_images
from utils.data.loaders import make_loader
from utils.runtime import Runtime

Namespace = argparse.Namespace
Loader = DataLoader[tuple[Tensor, ...]]


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Show defaults, but not those that say nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, "", []):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser in which `--batch-size` and `--batch_size` are the same option."""

    def __init__(self, description: str | None, **kwargs: Any) -> None:
        super().__init__(description=description, formatter_class=_Formatter, allow_abbrev=False, **kwargs)

    def parse_known_args(self, args=None, namespace=None):
        """Parse with dashes inside option names read as underscores."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([_with_underscores(str(word)) for word in words], namespace)


def _with_underscores(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def list_of(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Make an argparse type for `[0.1,0.1]`, with or without brackets."""

    def parse(text: str) -> list[Any]:
        inner = text.strip().removeprefix("[").removesuffix("]")
        try:
            return [kind(entry) for entry in inner.replace(" ", "").split(",") if entry]
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a list such as [1,1], got {text!r}") from None

    return parse


def positive(text: str) -> int:
    """Read a whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


class Ignored(argparse.Action):
    """An option of the released scripts that has no job any more: accepted, and said to be ignored."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(
            option_strings, argparse.SUPPRESS, nargs="?", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )

    def __call__(self, parser, namespace, values, option_string=None):
        """Say so."""
        print(f"{option_string} has no effect any more and is ignored")


def add_ignored_options(parser: argparse.ArgumentParser, *names: str) -> None:
    """Accept old switches that do nothing."""
    for name in ("--world_size", "--dist_url", "--dist_backend", "--model", *names):
        parser.add_argument(name, action=Ignored)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Devices, precision, seed and where results go."""
    group = parser.add_argument_group("run")
    group.add_argument("--device_ids", type=list_of(int), default=[], metavar="[0,1]", help="GPUs, the main one first")
    group.add_argument("--gpu", type=int, help="one GPU; overrides --device_ids")
    group.add_argument("--seed", type=int, default=0, help="for Python, NumPy and torch")
    group.add_argument("--amp", choices=["off", "bf16", "fp16"], default="off", help="mixed precision")
    group.add_argument("--compile", action="store_true", help="run models through torch.compile")
    group.add_argument(
        "-j", "--workers", type=int, default=min(4, os.cpu_count() or 1), help="processes that decode images"
    )
    group.add_argument("--suffix", default="", help="end of the names of what is written")
    group.add_argument("--out", default=".", help="root of what is written")


def add_data_options(parser: argparse.ArgumentParser, *, batch_size: int, dataset: str | None = None) -> None:
    """Data set, image size, caching, batch size. `dataset` None: the one that the checkpoint was trained on."""
    group = parser.add_argument_group("data")
    from_checkpoint = "; default: the checkpoint's"
    group.add_argument("--dataset", default=dataset, help="name of the data set" + ("" if dataset else from_checkpoint))
    group.add_argument(
        "--data_root", default=os.environ.get("KC_DATA", "data"), help="folder of the data sets; default from KC_DATA"
    )
    group.add_argument("--train_path", help="training images, one folder a class; overrides --data_root")
    group.add_argument("--val_path", help="validation images; overrides --data_root")
    group.add_argument(
        "--image_size", type=positive, default=224 if dataset else None,
        help="pixels to a side" + ("" if dataset else from_checkpoint),
    )  # fmt: skip
    group.add_argument(
        "--sample_num", default="", metavar="NAME", help="train on a sub-sampler's images, such as 50par_A"
    )
    group.add_argument(
        "--split", dest="sub_sampler_split", choices=["first", "random"], default="first",
        help="how a missing NNpar_A/B is made: the first images of each class, or random ones by --seed",
    )  # fmt: skip
    group.add_argument(
        "--cache_images", choices=["auto", "ram", "disk", "off"], default="auto", help="decode every image once"
    )
    group.add_argument("-b", "--batch_size", type=positive, default=batch_size, help="images of a step, over all GPUs")


def add_training_options(
    parser: argparse.ArgumentParser,
    *,
    optim: str,
    lr: float,
    epochs: int,
    logspace: float = 0,
    decay_factor: float = 0.3,
    save_epoch: int = 1,
    val_epoch: int = 5,
) -> None:
    """Optimiser, learning rates, epochs, saving and resuming; the defaults are the step's."""
    group = parser.add_argument_group("training")
    group.add_argument("--optim", choices=["SGD", "Adam"], default=optim, help="optimiser")
    group.add_argument("--lr", "--learning_rate", type=float, default=lr, help="first learning rate")
    group.add_argument("--momentum", type=float, default=0.9, help="of SGD")
    group.add_argument("--wd", "--weight_decay", dest="weight_decay", type=float, default=1e-4, help="weight decay")
    group.add_argument("--epochs", type=int, default=epochs, help="epochs in all")
    group.add_argument("--start_epoch", type=int, help="count from here instead of the checkpoint's epoch")
    group.add_argument(
        "--logspace", type=float, nargs="?", const=2.0, default=logspace, metavar="DECADES",
        help="decades that the learning rate falls over all epochs (2 if no number follows); 0: steps",
    )  # fmt: skip
    group.add_argument("--epoch_step", type=positive, default=60, help="epochs between steps of the learning rate")
    group.add_argument("--decay_factor", type=float, default=decay_factor, help="of such a step")
    group.add_argument("--save_epoch", type=positive, default=save_epoch, help="epochs between checkpoints")
    group.add_argument("--val_epoch", type=positive, default=val_epoch, help="epochs between validations")
    group.add_argument("-p", "--print_freq", type=positive, default=10, help="batches between readings of the loss")
    group.add_argument(
        "--resume", default="", metavar="PATH", help="go on from a checkpoint; auto: from this run's own"
    )


def add_layer_options(parser: argparse.ArgumentParser, *, conv_layer: int | None) -> None:
    """Where features are taken."""
    group = parser.add_argument_group("layer")
    group.add_argument(
        "--conv_layer", type=int, default=conv_layer, help="index in features (VGG, AlexNet) or stage (ResNet)"
    )
    group.add_argument("--layer", help="any node by name, such as features.30 or layer3.5.add; overrides --conv_layer")
    group.add_argument(
        "--fc", action="store_true", help="--conv_layer counts in the classifier: fully-connected features"
    )


def add_second_layer_options(parser: argparse.ArgumentParser) -> None:
    """Where net B's features are taken, if not at net A's layer."""
    group = parser.add_argument_group("layer of net B, where it differs")
    group.add_argument("--conv_layer2", type=int, help="as --conv_layer")
    group.add_argument("--layer2", help="as --layer")


def first_layer(args: argparse.Namespace) -> tuple[str | None, int, bool]:
    """Give the layer of net A: name, conv_layer, fc."""
    return args.layer, args.conv_layer, args.fc


def second_layer(args: argparse.Namespace) -> tuple[str | None, int, bool]:
    """Give the layer of net B: its own where one is named, else net A's."""
    if args.layer2 is None and args.conv_layer2 is None:
        return first_layer(args)
    return args.layer2, args.conv_layer if args.conv_layer2 is None else args.conv_layer2, args.fc


def fill_from_checkpoint(args: argparse.Namespace, state: dict[str, Any]) -> None:
    """Take the data set and the image size from a classifier's checkpoint where no option names them.

    The authors' checkpoints do not say; they were all trained at 224 pixels.
    """
    data = state.get("data", {})
    args.dataset = args.dataset or data.get("dataset", "CUB200")
    args.image_size = args.image_size or data.get("image_size", 224)


def open_images(args: argparse.Namespace, split: str, runtime: Runtime) -> ImageData:
    """Open the "train" or "val" images that the data options name, decoded once as `--cache_images` says."""
    data = load_images(
        args.dataset,
        split,
        data_root=args.data_root,
        image_size=args.image_size,
        path=args.train_path if split == "train" else args.val_path,
        sample_num=args.sample_num or None,
        sub_sampler_split=args.sub_sampler_split,
        seed=args.seed,
    )
    return cache_images(
        data,
        args.cache_images,
        cache_dir=Path(args.data_root, ".cache"),
        workers=args.workers,
        device=runtime.device,
        quiet=not runtime.is_main,
    )


def validation_loaders(args: argparse.Namespace, data: ImageData, runtime: Runtime) -> dict[str, Loader]:
    """Make one loader for each part of a mixed data set, or one called "" for all of it."""
    if not data.parts:
        return {"": image_loader(args, data, runtime)}
    return {name: image_loader(args, data, runtime, part=part) for name, part in data.parts.items()}


def image_loader(
    args: argparse.Namespace, data: ImageData, runtime: Runtime, *, shuffle: bool = False, part: Tensor | None = None
) -> Loader:
    """Make the loader of images, `--batch_size` of them a step over all processes; `part` chooses some."""
    return make_loader(
        data if part is None else Subset(data, part.tolist()),
        max(1, args.batch_size // runtime.world_size),
        shuffle=shuffle,
        seed=args.seed,
        workers=0 if data.stored is not None else args.workers,
        rank=runtime.rank,
        world_size=runtime.world_size,
        pin=runtime.device.type == "cuda" and data.device.type == "cpu",
    )
