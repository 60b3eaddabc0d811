"""What groups of options name, opened: the run, images, their loaders, the optimiser, its rates."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from utils import runs, sums
from utils.data.batches import AUGMENTATIONS
from utils.data.computed_once import compute_once
from utils.data.contents import Contents, read_contents
from utils.data.datasets import dataset_spec
from utils.data.image_cache import cache_images
from utils.data.images import ImageData, check_classes, load_images, size_note
from utils.data.loaders import Part, make_loader
from utils.data.storage import TensorStore
from utils.errors import InputError
from utils.features.cache import FeatureCache, OldFeatureFolder, open_features
from utils.features.nets import ask, doubts, pair_doubts
from utils.features.source import Source
from utils.files import check_writable
from utils.normalisation import (
    NORMALISATIONS,
    Normalisation,
    normalisation_words,
    read_normalisation,
    recorded_normalisation,
)
from utils.option_groups import DataOptions, OutputOptions, RunOptions, TrainingOptions
from utils.provenance import NetSource
from utils.runtime import Runtime
from utils.runtime import start as start_runtime
from utils.training import engine, resume
from utils.training.engine import Fit, make_optimizer
from utils.training.run import Run
from utils.training.schedules import by_epoch, learning_rates

Loader = DataLoader[tuple[Tensor, ...]]
Loaders = dict[str, Loader]
Features = FeatureCache | OldFeatureFolder
UNKNOWN = NetSource()
IMAGES_ASKED = 256  # to see whether a net is right at all
# The first two maps of vgg16 take 0.1 GB of these. More at once is not faster: of 200 photos of 224
# pixels ConvOutput took 76 s by 4, 74 by 8, 74 by 16, 75 by 32 (means of 2 turns, two cores), and
# held 1.64, 1.86, 2.22 and 2.38 GB.
PIXELS_AT_ONCE = 4 * 224**2
# On so many a net proves its cut: several, because a layer may mix the images of a batch
PROOF_IMAGES = 2


def start(options: RunOptions, output: OutputOptions | None = None) -> Runtime:
    """Choose devices, join other processes, seed; refuse an --out that cannot be written to."""
    if output is not None:
        check_writable(output.out)
    sums.skip(skipped=options.no_verify)
    return start_runtime(
        options.device_ids,
        options.gpu,
        options.seed,
        options.amp,
        compiled=options.compile,
        tf32=options.tf32,
        workers=options.workers,
    )


def optimizer(options: TrainingOptions, model: nn.Module) -> torch.optim.Optimizer:
    """Make the optimiser that the options name, over the parameters that are trained."""
    return make_optimizer(
        options.optim,
        model.parameters(),
        lr=options.lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
    )


def fit(
    options: TrainingOptions,
    model: nn.Module,
    runtime: Runtime,
    *,
    has_unused: bool = False,
) -> Fit:
    """Move a model to its devices, and give it its optimiser.

    `has_unused` is as `Runtime.parallel` takes it.
    """
    net = runtime.parallel(model, has_unused=has_unused)
    return Fit(
        net,
        model,
        optimizer(options, model),
        runtime.grad_scaler(),
        runtime,
        options.print_freq,
        skip_nonfinite=options.skip_nonfinite,
    )


def rates(options: TrainingOptions, lr: float | None = None) -> list[float]:
    """Give the learning rate of every epoch, from --lr or from another first one."""
    return learning_rates(
        options.lr if lr is None else lr,
        options.epochs,
        logspace=options.logspace,
        epoch_step=options.epoch_step,
        decay_factor=options.decay_factor,
    )


def rates_by_step(options: TrainingOptions, steps: int) -> list[list[float]]:
    """Give the learning rate of every step, by epoch; an epoch has so many steps."""
    return by_epoch(rates(options), steps, one_cycle=options.one_cycle)


def check_smoothing(options: TrainingOptions, data: ImageData) -> None:
    """Refuse to smooth labels of images that have several.

    Raises:
        InputError: --label_smoothing is above 0, and the images have several labels.
    """
    if options.label_smoothing and data.multi_label:
        raise InputError(
            f"--label_smoothing {options.label_smoothing:g} is of images with one label each, and"
            " these have several; leave it out"
        )


def check_last_batch(
    options: DataOptions,
    model: nn.Module,
    data: ImageData,
    runtime: Runtime,
    shape: Sequence[int] | None = None,
) -> None:
    """Refuse a last batch of one image, if a BatchNorm of the model cannot take it.

    `shape` is of the model's input.
    """
    shape = shape or (3, options.image_size, options.image_size)
    engine.check_last_batch(model, len(data), options.batch_size, shape, runtime)


def run(
    output: OutputOptions,
    training: TrainingOptions,
    runtime: Runtime,
    path: Path,
    settings: Mapping[str, Any],
    **choices: Any,
) -> Run:
    """Find what a run of training goes on from, as the options say; see `Run`.

    Args:
        output: where it writes, and which checkpoint it goes on from.
        training: its epochs, and how often it validates and saves.
        runtime: which process this is.
        path: where the last epoch is saved; the log is named after it.
        settings: every option that changes the result.
        choices: arguments of `Run`, in place of what the options say.

    Raises:
        InputError: another run is writing there, or its checkpoint is there; or no epoch is left to
            train.
    """
    usual: dict[str, Any] = {
        "log_folder": runs.log_folder(output.out, runs.stem(path)),
        "resume": output.resume,
        "restart": output.restart,
        "extendable": training.is_extendable,
        "start_epoch": output.start_epoch,
        "val_epoch": training.val_epoch,
        "save_epoch": training.save_epoch,
        "keep": output.keep,
    }
    return Run(path, settings, training.epochs, runtime, **usual | choices)


def images(
    options: DataOptions,
    split: str,
    record: Mapping[str, Any] | None = None,
    *,
    augment: bool = False,
) -> ImageData:
    """List the "train" or "val" images that the data options name; none is decoded yet.

    Args:
        options: which images.
        split: "train" or "val".
        record: what a network's checkpoint says of its images under "data": its `classes`, which
            these must have, and its `normalisation`, which is taken. If it has an `image_size`,
            nothing is said of small files.
        augment: as --augment says, if there is such an option.

    Raises:
        InputError: a folder is missing, or its classes are others.
    """
    data = load_images(
        options.dataset,
        split,
        data_root=options.data_root,
        image_size=options.image_size,
        resize=options.resize,
        path=options.train_path if split == "train" else options.val_path,
        sample_num=options.sample_num or None,
        sub_sampler_split=options.sub_sampler_split,
        seed=options.seed,
        normalisation=_chosen_normalisation(options) or recorded_normalisation(record or {}),
        augmentation=AUGMENTATIONS.get(options.augment) if augment else None,
    )
    if record and record.get("classes"):
        check_classes(
            record["classes"],
            data.classes,
            f"the {'training' if split == 'train' else 'validation'} images",
        )
    if "image_size" not in (record or {}) and (note := size_note(data)):
        data.notes.append(note)
    return data


def few_pixels(data: ImageData) -> Tensor:
    """Decode the first and the last image, on which a net proves itself when it is opened.

    Random numbers stay as they were, though a view may draw a crop.

    Returns:
        uint8 (n, 3, S, S) on the CPU, n at most `PROOF_IMAGES`.
    """
    # First and last: of two classes, so that they differ.
    chosen = torch.linspace(0, len(data) - 1, min(PROOF_IMAGES, len(data))).long().tolist()
    with torch.random.fork_rng(devices=[]):
        return data.decode(chosen)


def normalisation(
    options: DataOptions,
    state: Mapping[str, Any],
    runtime: Runtime,
    net: str = "",
    fitted: NetSource = UNKNOWN,
) -> Normalisation:
    """Choose the constants by which a trained net reads pixels.

    A line says so where nobody recorded them.

    What else of its images is not as in training, their size and resampling, is said too.

    The first that says them is taken: an option of this net, one of all nets, the record of what
    was made of its features before, its checkpoint, what its factory carries, the data set.

    Args:
        options: which images.
        state: the net's checkpoint without the weights.
        runtime: says a line once.
        net: "A" or "B" of two.
        fitted: what a Trans-Net or stored features say of the net.
    """
    called = f"net {net}" if net else "the net"
    if difference := _other_images(options, state):
        runtime.say(f"note: {called} {difference}")
    chosen, recorded = (
        _chosen_normalisation(options, net),
        recorded_normalisation(state.get("data", {})),
    )
    if chosen is not None:
        if recorded not in (None, chosen):
            words = (
                f"{normalisation_words(recorded)} in its checkpoint, {normalisation_words(chosen)}"
                " by an option"
            )
            runtime.say(f"note: the normalisation of {called} is {words}, which is taken")
        return chosen
    # What was made of the features counts before the checkpoint.
    if before := fitted.normalisation or recorded:
        return before
    # Nobody recorded it: take the best guess, and say so.
    carried = recorded_normalisation(state["inputs"]._asdict()) if "inputs" in state else None
    named = dataset_spec(options.dataset).normalisation
    origin = (
        f"that of the data set {options.dataset}"
        if carried is None
        else "which its factory carries"
    )
    constants = NORMALISATIONS[named] if carried is None else carried
    runtime.say(
        f"note: neither a record nor an option says how the images of {called} were normalised;"
        f" taken is {normalisation_words(constants)}, {origin};"
        f" --normalisation{'AB'.find(net) + 1 if net else ''} names another"
    )
    return constants


def with_record(
    options: DataOptions, net: NetSource, state: Mapping[str, Any], images: ImageData
) -> NetSource:
    """Add the accuracy that a net's checkpoint says of these very images, if it says one.

    Args:
        options: which images.
        net: what it is.
        state: its checkpoint without the weights.
        images: of one split. Training images are not recorded; of a run that was left between two
            validations nobody knows which weights were measured.
    """
    data, hits, accuracy = state.get("data", {}), state.get("hits"), state.get("acc1")
    same = (
        images.split == "val" and not images.multi_label and data.get("classes") == images.classes
    )
    same &= (data.get("dataset"), data.get("name")) == (
        options.dataset,
        options.name if options.dataset == "folder" else None,
    )
    # As many images as were measured: a subset has another accuracy. A checkpoint that was stripped
    # of what it says of its images does not tell how many they were.
    same &= "images" in state if hits is None else len(hits) == len(images)
    # At a multiple of them a run or a generation was at its end, and its weights were measured.
    epochs = state.get("settings", {}).get("epochs") or 1
    if not same or accuracy is None or state.get("epoch", 0) % epochs:
        return net
    return replace(net, top1_percent=float(accuracy))


def source_doubts(options: DataOptions, source: Source, runtime: Runtime) -> list[str]:
    """Say what is doubtful about the nets of features.

    Those of computed features are asked about some of the images.
    """
    if not isinstance(source.data, ImageData):
        return doubts(source.data)
    data = source.data
    if source.nets is None or data.multi_label:
        return pair_doubts(source.provenance, {}, None)
    # Evenly over the folder, which lists one class behind the other.
    chosen = torch.linspace(0, len(data) - 1, min(len(data), IMAGES_ASKED)).long()
    answers = ask(source.nets, image_loader(options, data, runtime, numbers=chosen), runtime)
    return pair_doubts(source.provenance, answers, data.targets)


def say_doubts(options: DataOptions, source: Source, runtime: Runtime) -> dict[str, Any]:
    """Print what is doubtful about the nets of features, and give it as a record.

    The record is empty where nothing is doubtful.
    """
    sentences = source_doubts(options, source, runtime)
    for sentence in sentences:
        runtime.say(f"doubt: {sentence}")
    return {"doubts": sentences} if sentences else {}


def known_images(
    options: DataOptions, state: Mapping[str, Any], runtime: Runtime
) -> dict[str, Any]:
    """Give what a net's checkpoint says of its images, for `images`.

    It has the normalisation that is taken.
    """
    return {**state.get("data", {}), "normalisation": normalisation(options, state, runtime)}


def _other_images(options: DataOptions, state: Mapping[str, Any]) -> str:
    """Say how a net's images differ from those here in size and resampling.

    The net's checkpoint or its factory knows.
    """
    trained, carried = state.get("data", {}).get("image_size"), state.get("inputs")
    if trained is not None:
        differs = trained != options.image_size
        return (
            f"was trained at {trained} pixels and sees images of {options.image_size}"
            if differs
            else ""
        )
    if carried is None:
        return ""
    cropped = dataset_spec(options.dataset).val_view == "center_crop"
    # A "center_crop" view shows the middle 0.875 of a side: 224 of 256 pixels.
    here: tuple[int, str, float] = (options.image_size, "bilinear", 0.875 if cropped else 1.0)
    stated = (carried.image_size, carried.interpolation, carried.crop_share)
    # What a factory does not state counts as it is here.
    theirs: tuple[Any, ...] = tuple(value or ours for value, ours in zip(stated, here))
    if theirs == here:
        return ""
    of_theirs, of_here = (
        f"{size} pixels ({interpolation} interpolation, the middle {100 * share:.3g} % of a side)"
        for size, interpolation, share in (theirs, here)
    )
    return f"was made for images of {of_theirs} and sees images of {of_here}"


def _chosen_normalisation(options: DataOptions, net: str = "") -> Normalisation | None:
    """Give the constants that an option names, of net "A" or "B" its own option first.

    "B1", "B2" and so on are references of B's recipe, which take B's.
    """
    of_net = getattr(options, {"A": "normalisation1", "B": "normalisation2"}.get(net[:1], ""), None)
    text = of_net or options.normalisation
    return read_normalisation(text) if text else None


def both_splits(
    options: DataOptions, record: Mapping[str, Any] | None = None
) -> tuple[ImageData, ImageData]:
    """List the training and the validation images, which must have the same classes.

    See `images`.
    """
    train_images = images(options, "train", record, augment=True)
    if len(train_images.classes) < 2:
        raise InputError(
            f"{train_images.root} has one class, {train_images.classes[0]}, and nothing can be"
            " learned from one; name the folder above the class folders"
        )
    # The validation images must have these classes, and are read by the same normalisation.
    record = {"classes": train_images.classes, "normalisation": train_images.normalisation}
    val_images = images(options, "val", record | {"image_size": options.image_size})
    # Each remark once, though both splits have it.
    val_images.notes = [note for note in val_images.notes if note not in train_images.notes]
    return train_images, val_images


def bind(
    options: DataOptions,
    runtime: Runtime,
    *splits: ImageData,
    outputs: Path | Sequence[Path] = (),
    restart: bool = False,
    elsewhere: str = "--suffix",
) -> dict[str, Contents]:
    """Hash the images of a run, and refuse to go on with what was made of others.

    Args:
        options: which images.
        runtime: the main process hashes, the others learn it.
        splits: the images.
        outputs: the checkpoint, or the checkpoints, that the run would go on with or replace.
        restart: they are replaced, so nothing is compared.
        elsewhere: the option that names another place.

    Returns:
        "train" and "val" → contents; each of `splits` keeps its contents as `contents`, too.

    Raises:
        InputError: a checkpoint was made of other images.
    """
    # Hashes are kept in .cache by size and time of each file, so a second run costs nothing.
    for data in splits:
        if runtime.is_main:
            read_contents(data, cache_dir=Path(options.data_root, ".cache"))
        data.contents = runtime.gather(data.contents)[0]
    contents = {data.split: data.contents for data in splits if data.contents is not None}
    for path in [outputs] if isinstance(outputs, Path) else outputs:
        if path.exists() and not restart:
            resume.check_images(path, contents, elsewhere=elsewhere)
    return contents


def images_record(*splits: ImageData) -> dict[str, Any]:
    """Give what a checkpoint says of the images that it was made of, under "images": see `bind`."""
    return {data.split: data.contents.to_record() for data in splits if data.contents is not None}


def decoded(options: DataOptions, data: ImageData, runtime: Runtime) -> ImageData:
    """Say what the user should know of images, decode them once, and keep them.

    `--cache_images` says where.
    """
    for note in data.notes:
        runtime.say(f"{data.split} images: {note}")
    return cache_images(
        data,
        options.cache_images,
        cache_dir=Path(options.data_root, ".cache"),
        workers=runtime.workers,
        device=runtime.device,
        quiet=not runtime.is_main,
    )


def with_decoded(options: DataOptions, source: Source, runtime: Runtime) -> Source:
    """Decode the images that features are computed of, as `decoded` does.

    Stored features stay as they are.
    """
    if not isinstance(source.data, ImageData):
        return source
    return source._replace(data=decoded(options, source.data, runtime))


def with_features(
    options: DataOptions,
    data: ImageData,
    *,
    frozen: nn.Module,
    shape: tuple[int, ...],
    runtime: Runtime,
    folder: Path,
) -> ImageData:
    """Give the data set whose batches hold a frozen network's feature of each image.

    Each feature is computed once.

    Args:
        options: which images.
        data: images that are not augmented.
        frozen: pixels (N, 3, S, S) → feature (N, *shape).
        shape: of one image's feature.
        runtime: device, processes, precision.
        folder: where a file is made, if there is no room in memory.
    """
    data = decoded(options, data, runtime)
    loader, label = image_loader(options, data, runtime), f"{data.split} features {shape}"
    return data.with_stored(
        compute_once(frozen, loader, shape, runtime, folder=folder, label=label)
    )


def features_anew(
    options: DataOptions,
    stored: Features,
    head: nn.Module,
    runtime: Runtime,
    shape: tuple[int, ...] | None = None,
) -> TensorStore:
    """Compute what another net makes of the images that stored features were made of.

    Args:
        options: where the images are, and the batch size.
        stored: the features.
        head: pixels → feature (`utils.pixels.FromPixels`).
        runtime: device, processes, precision.
        shape: of the head's feature; default: that of B's.

    Returns:
        In memory, a row for each image.

    Raises:
        InputError: see `images_of_features`.
    """
    named, data = images_of_features(options, stored, runtime)
    computed = with_features(
        named,
        data,
        frozen=head,
        shape=shape or stored.shape_b,
        runtime=runtime,
        folder=stored.folder,
    ).stored
    assert computed is not None
    return TensorStore(computed.values.cpu())


def images_of_features(
    options: DataOptions, stored: Features, runtime: Runtime
) -> tuple[DataOptions, ImageData]:
    """List the images that stored features were made of; none is decoded yet.

    Returns:
        The options that name them, and the images.

    Raises:
        InputError: the features do not say what they were made of, or those images are not there,
            or changed since.
    """
    source = stored.provenance
    if source.dataset is None or source.transform is None:
        raise InputError(
            f"{stored.folder} does not say which images it was made of; store the features anew"
        )
    # The options as they were when the features were stored; only the folders may be others now.
    named = replace(
        options,
        dataset=source.dataset,
        image_size=source.image_size,
        resize=source.resize or options.resize,
        sample_num=source.sample_num or "",
        sub_sampler_split=None,
        normalisation=None,
        cache_images="off",
    )
    record = {"classes": source.classes, "image_size": source.image_size}
    data = images(named, source.split or "val", record)
    if data.paths != stored.paths:
        raise InputError(
            f"{data.root} has other images than those of {stored.folder}; name theirs by"
            " --data_root, --train_path and --val_path"
        )
    contents = bind(named, runtime, data)[data.split]
    if stored.contents and (changes := stored.contents.changes(contents)):
        raise InputError(
            f"{stored.folder} was made of other images than are in {data.root}; since then"
            f" {changes}; put them back, or store the features again with ConvOutput.py"
        )
    return named, data


def mixed_pixels(options: DataOptions, stored: Features, runtime: Runtime) -> Iterator[Tensor]:
    """Give the pixels of the images that stored features were made of.

    They come in mixed batches, on the device.

    Every process gets all of them, so that what they set is the same everywhere. A folder lists one
    class behind the other; mixed, each batch has the spread of all images.

    Raises:
        InputError: see `images_of_features`.
    """
    _, data = images_of_features(options, stored, runtime)
    order = torch.Generator().manual_seed(runtime.seed % 2**64)
    for numbers in torch.randperm(len(data), generator=order).split(options.batch_size):
        yield data.decode(numbers.tolist()).to(runtime.device)


def image_loader(
    options: DataOptions,
    data: ImageData,
    runtime: Runtime,
    *,
    shuffle: bool = False,
    numbers: Tensor | None = None,
) -> Loader:
    """Make the loader of images, `--batch_size` of them a step over all processes.

    `numbers` chooses some.

    Where nothing is trained on the CPU a step has no more than fit `PIXELS_AT_ONCE`: memory stays
    small, and what comes out does not depend on the batch.
    """
    # An option counts the images of all processes together.
    batch_size = max(1, options.batch_size // runtime.world_size)
    if not runtime.has_accelerator and not shuffle:
        batch_size = min(batch_size, max(1, PIXELS_AT_ONCE // data.image_size**2))
    return make_loader(
        data if numbers is None else Part(data, numbers.tolist()),
        batch_size,
        shuffle=shuffle,
        seed=runtime.seed,
        workers=0 if data.stored is not None else runtime.workers,
        rank=runtime.rank,
        world_size=runtime.world_size,
        pin=runtime.locks_pages and data.device.type == "cpu",
    )


def stored_features(
    folder: str | Path, split: str, record: Mapping[str, str | None], *, reverse: bool = False
) -> Features:
    """Open features that ConvOutput.py stored.

    Args:
        folder: that it wrote, or the one of the split in it.
        split: "train" or "val".
        record: what options say of them, by the names of their record; None: nothing.
        reverse: A and B are exchanged.

    Raises:
        InputError: there are none, or they are others than the options say.
    """
    expected = {name: value for name, value in record.items() if value is not None}
    return open_features(folder, split=split, reverse=reverse, expected=expected)


def feature_loader(
    options: DataOptions, features: Dataset[Any], runtime: Runtime, *, shuffle: bool = False
) -> Loader:
    """Make the loader of stored features."""
    return make_loader(
        features,
        max(1, options.batch_size // runtime.world_size),
        shuffle=shuffle,
        seed=runtime.seed,
        # On the CPU the process that computes reads as fast.
        workers=runtime.workers if runtime.has_accelerator else 0,
        rank=runtime.rank,
        world_size=runtime.world_size,
        pin=runtime.locks_pages,
    )


def loader(
    options: DataOptions,
    data: ImageData | Features,
    runtime: Runtime,
    *,
    shuffle: bool = False,
    numbers: Tensor | None = None,
) -> Loader:
    """Make the loader of stored features or of images; `numbers` chooses some."""
    if isinstance(data, ImageData):
        return image_loader(options, data, runtime, shuffle=shuffle, numbers=numbers)
    chosen = data if numbers is None else Part(data, numbers.tolist())
    return feature_loader(options, chosen, runtime, shuffle=shuffle)


def validation_loaders(options: DataOptions, data: ImageData, runtime: Runtime) -> Loaders:
    """Make one loader for each part of a mixed data set, or one called "" for all of it."""
    if not data.parts:
        return {"": image_loader(options, data, runtime)}
    return {
        name: image_loader(options, data, runtime, numbers=numbers)
        for name, numbers in data.parts.items()
    }


def data_record(options: DataOptions, data: ImageData) -> dict[str, Any]:
    """Give what a classifier's checkpoint says of its training images, under "data"."""
    record: dict[str, Any] = {
        "dataset": options.dataset,
        "sample_num": options.sample_num,
        "classes": data.classes,
    }
    record |= {"image_size": options.image_size, "resize": options.resize}
    record |= {"normalisation": data.normalisation}
    return record | ({"name": options.name} if options.dataset == "folder" else {})
