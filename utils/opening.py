"""What the options of a step mean, opened: the run, images and their loaders, the optimiser and its rates."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from utils import checkpoint
from utils.data.batches import normalise
from utils.data.computed_once import compute_once
from utils.data.image_cache import cache_images
from utils.data.images import ImageData, check_classes, load_images
from utils.data.loaders import make_loader
from utils.errors import InputError
from utils.options import Namespace
from utils.runtime import Runtime
from utils.runtime import start as start_runtime
from utils.training.engine import Fit, make_optimizer
from utils.training.schedules import learning_rates

Loader = DataLoader[tuple[Tensor, ...]]
Loaders = dict[str, Loader]


def start(args: Namespace) -> Runtime:
    """Choose devices, join other processes, seed."""
    return start_runtime(args.device_ids, args.gpu, args.seed, args.amp, args.compile)


def optimizer(args: Namespace, model: nn.Module) -> torch.optim.Optimizer:
    """Make the optimiser that the options name, over the parameters that are trained."""
    return make_optimizer(
        args.optim, model.parameters(), lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay
    )


def fit(args: Namespace, model: nn.Module, runtime: Runtime) -> Fit:
    """Move a model to its devices and give it its optimiser."""
    net = runtime.parallel(model)
    return Fit(net, model, optimizer(args, model), runtime.grad_scaler(), runtime, args.print_freq)


def rates(args: Namespace, lr: float | None = None) -> list[float]:
    """Give the learning rate of every epoch, from --lr or from another first one."""
    return learning_rates(
        args.lr if lr is None else lr,
        args.epochs,
        logspace=args.logspace,
        epoch_step=args.epoch_step,
        decay_factor=args.decay_factor,
    )


def first_epoch(args: Namespace, fit: Fit, state: checkpoint.State, path: Path | None) -> int:
    """Put the optimiser where a checkpoint left it.

    Args:
        args: the options.
        fit: its model has the checkpoint's weights already.
        state: the checkpoint, or nothing.
        path: its file.

    Returns:
        The first epoch to train, counted from 0.

    Raises:
        InputError: `--start_epoch` leaves no epoch to train.
    """
    done = fit.restore(state, path) if path else 0
    start_epoch = getattr(args, "start_epoch", None)  # which a series and a compression do not have
    if start_epoch is not None:
        if start_epoch >= args.epochs:
            raise InputError(f"--start_epoch {start_epoch} leaves nothing of --epochs {args.epochs} to train")
        done = start_epoch
    if path and done < args.epochs:
        fit.runtime.say(f"going on after epoch {done} of {args.epochs}: {path}")
    return done


def images(args: Namespace, split: str, classes: Sequence[str] | None = None) -> ImageData:
    """List the "train" or "val" images that the data options name; none is decoded yet.

    Args:
        args: the options, filled in.
        split: "train" or "val".
        classes: those that the network has, if it is known.

    Raises:
        InputError: a folder is missing, or its classes are others.
    """
    data = load_images(
        args.dataset,
        split,
        data_root=args.data_root,
        image_size=args.image_size,
        path=args.train_path if split == "train" else args.val_path,
        sample_num=args.sample_num or None,
        sub_sampler_split=args.sub_sampler_split or "first",
        seed=args.seed,
    )
    if classes is not None:
        check_classes(list(classes), data.classes, f"the {'training' if split == 'train' else 'validation'} images")
    return data


def both_splits(args: Namespace, classes: Sequence[str] | None = None) -> tuple[ImageData, ImageData]:
    """List the training and the validation images, which must have the same classes."""
    train_images = images(args, "train", classes)
    return train_images, images(args, "val", train_images.classes)


def decoded(args: Namespace, data: ImageData, runtime: Runtime) -> ImageData:
    """Decode images once, as `--cache_images` says, and keep them."""
    return cache_images(
        data,
        args.cache_images,
        cache_dir=Path(args.data_root, ".cache"),
        workers=args.workers,
        device=runtime.device,
        quiet=not runtime.is_main,
    )


def with_features(
    args: Namespace,
    data: ImageData,
    *,
    frozen: nn.Module,
    shape: tuple[int, ...],
    runtime: Runtime,
    folder: Path,
) -> ImageData:
    """Give the data set whose batches hold what a frozen network makes of each image, computed once.

    Args:
        args: the options.
        data: images that are not augmented.
        frozen: normalised images (N, 3, S, S) → feature (N, *shape).
        shape: of one image's feature.
        runtime: device, processes, precision.
        folder: where a file is made, if there is no room in memory.
    """
    data = decoded(args, data, runtime)
    loader, label = image_loader(args, data, runtime), f"{data.split} features {shape}"
    function = partial(_features_of, frozen)
    return data.with_stored(compute_once(function, loader, shape, runtime, folder=folder, label=label))


def _features_of(frozen: nn.Module, images: Tensor) -> Tensor:
    return frozen(normalise(images))


def image_loader(
    args: Namespace, data: ImageData, runtime: Runtime, *, shuffle: bool = False, part: Tensor | None = None
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


def feature_loader(args: Namespace, features: Dataset[Any], runtime: Runtime, *, shuffle: bool = False) -> Loader:
    """Make the loader of stored features."""
    on_gpu = runtime.device.type == "cuda"
    return make_loader(
        features,
        max(1, args.batch_size // runtime.world_size),
        shuffle=shuffle,
        seed=args.seed,
        workers=args.workers if on_gpu else 0,  # on the CPU the process that computes reads as fast
        rank=runtime.rank,
        world_size=runtime.world_size,
        pin=on_gpu,
    )


def validation_loaders(args: Namespace, data: ImageData, runtime: Runtime) -> Loaders:
    """Make one loader for each part of a mixed data set, or one called "" for all of it."""
    if not data.parts:
        return {"": image_loader(args, data, runtime)}
    return {name: image_loader(args, data, runtime, part=part) for name, part in data.parts.items()}


def data_record(args: Namespace, classes: Sequence[str]) -> dict[str, Any]:
    """Give what a classifier's checkpoint says of its training images, under "data"."""
    record = {"dataset": args.dataset, "sample_num": args.sample_num, "classes": list(classes)}
    record["image_size"] = args.image_size
    return record | ({"name": args.name} if args.dataset == "folder" else {})
