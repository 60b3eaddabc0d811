"""Train a classifier: the nets A and B that the other steps compare (paper Sec. 4)."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from utils import options
from utils.command import answer_early, command
from utils.errors import InputError
from utils.option_groups import DataOptions, Group, OutputOptions, RunOptions, TrainingOptions
from utils.parser import Namespace, Parser, architecture, some_path, weights_file, whole


def build_parser() -> Parser:
    """Declare this step's options."""
    parser = Parser(
        __doc__,
        "python Training.py --dataset CUB200 --arch vgg16_bn --seed 0 --suffix sd0",
        check=check_options,
    )
    group = parser.add_argument_group("network")
    group.add_argument(
        "-a", "--arch", type=architecture, help=f"{options.ARCHS}; default: {options.ARCH}"
    )
    group.add_argument(
        "--pretrained", action="store_true", help="start from torchvision's ImageNet weights"
    )
    group.add_argument(
        "--weights", type=weights_file, metavar="FILE", help="start from the weights in a file"
    )
    group.add_argument(
        "--train_layer",
        type=whole(0),
        default=34,
        help="of *_ft networks: first layer that is trained",
    )
    group.add_argument(
        "--fix_bn", action="store_true", help="keep BatchNorm's running statistics as loaded"
    )
    group.add_argument(
        "-e",
        "--evaluate",
        neutral=True,
        action="store_true",
        help="only measure the accuracy of --resume",
    )
    group.add_argument(
        "--export",
        neutral=True,
        type=some_path,
        metavar="FILE.safetensors",
        help="also write the weights for other programs; with -e those of --resume",
    )
    options.add_data_options(parser, batch_size=128)
    options.add_training_options(parser, optim="SGD", lr=0.01, epochs=300, short=True)
    options.add_resume_options(parser)
    options.add_run_options(parser)
    options.add_output_options(parser)
    options.add_ignored_options(parser, "--fine_tune")
    return parser


@dataclass(frozen=True)
class NetOptions(Group):
    """The network, and what its training begins from.

    Attributes:
        arch: its architecture.
        pretrained: torchvision's ImageNet weights.
        weights: a file of weights.
        train_layer: of *_ft networks, the first layer that is trained.
        fix_bn: BatchNorm's running statistics stay as loaded.
    """

    arch: str
    pretrained: bool
    weights: str | None
    train_layer: int
    fix_bn: bool


def check_options(parser: Parser, args: Namespace) -> None:
    """Refuse two schedules, and to measure a network that no option names."""
    options.check_schedule(parser, args)
    if args.evaluate and not (args.resume or args.pretrained or args.weights):
        raise InputError("--evaluate needs a trained network: name one with --resume")


# Help, a wrong option and a missing file are answered before PyTorch is loaded, which takes seconds.
if __name__ == "__main__":
    answer_early(build_parser())

from torch import nn

from models.classifiers import (
    build,
    check_reloads,
    classifier_record,
    fix_batch_norm,
    read_classifier,
)
from models.layers import usual_layer
from models.logits import check_logits, has_unused_parameters
from models.memory_order import order_channels_last
from models.own import is_own, named_arch
from utils import checkpoint, opening, runs
from utils.data.images import ImageData, check_outputs
from utils.files import sha256
from utils.training import resume
from utils.training.classification import classify, known_hits, validate
from utils.training.engine import train_one_epoch
from utils.training.metrics import main_accuracy
from utils.training.run import Run
from utils.training.schedules import each_step


def read_resumed(output: OutputOptions, arch: str | None, label: str) -> checkpoint.State:
    """Read the head of the checkpoint that --resume means, {} if there is none.

    Its architecture, data set and image size are taken where no option names others.

    Args:
        output: where the run saves, and what it goes on from.
        arch: the architecture, if an option names it.
        label: the data set's part of file names.
    """
    path = runs.classifier_path(output.out, label, arch or options.ARCH, output.suffix)
    state: checkpoint.State = {}
    resume.put_right(output.resume, path, restart=output.restart)
    # Only the head of the file is read here: its tensors stay on the disk.
    if output.resume not in ("", "auto"):
        state = checkpoint.load(output.resume, mmap=True)
    elif output.resume and path.exists() and not output.restart:
        state = resume.read_own(path)
    if isinstance(recorded := state.get("arch"), str):
        named_arch(recorded, arch, path if output.resume == "auto" else output.resume)
    return state


def new_model(net: NetOptions, record: Mapping[str, Any], image_size: int) -> nn.Module:
    """Build the network that a record describes, as the options begin it."""
    model = build(**record, pretrained=net.pretrained, weights=net.weights, image_size=image_size)
    # A net that could not be read again would be found out only after its training.
    check_reloads(model, record, image_size)
    return model


def evaluate(
    net: NetOptions,
    data: DataOptions,
    output: OutputOptions,
    exported: str | None,
    runtime: opening.Runtime,
) -> None:
    """Measure the accuracy of --resume, or of what training begins from, on validation images."""
    resumed: str | Path = output.resume
    if resumed == "auto":
        resumed = runs.classifier_path(output.out, data.label, net.arch, output.suffix)
    if resumed:
        model, state = read_classifier(resumed, net.arch)
        val_images = opening.images(data, "val", opening.known_images(data, state, runtime))
        arch = state["model"]["arch"]
        check_outputs(state["model"]["num_classes"], val_images, resumed)
    else:
        arch = net.arch
        val_images = opening.images(data, "val")
        model = new_model(net, classifier_record(arch, len(val_images.classes)), data.image_size)
    # Before images are decoded
    check_logits(model, arch, len(val_images.classes), data.image_size)
    loaders = opening.validation_loaders(data, opening.decoded(data, val_images, runtime), runtime)
    step = partial(classify, preprocess=val_images.preprocessing())
    runtime.say(runs.describe(validate(runtime.parallel(model), loaders, runtime, step)))
    record = classifier_record(arch, len(val_images.classes))
    export(exported, model, record, opening.data_record(data, val_images), runtime)


def export(
    file: str | None,
    model: nn.Module,
    record: Mapping[str, Any],
    data_record: Mapping[str, Any],
    runtime: opening.Runtime,
) -> None:
    """Write the weights to the file that --export names, if it names one.

    They come with what a checkpoint says of the network and of its images.
    """
    if file and runtime.is_main:
        facts = {"arch": record["arch"], "model": record, "data": data_record}
        checkpoint.save_safetensors(file, model.state_dict(), facts)
        runtime.say(f"saved {file}")


def open_model_and_images(
    net: NetOptions, data: DataOptions, resumed: Path | None, runtime: opening.Runtime
) -> tuple[nn.Module, dict[str, Any], ImageData, ImageData]:
    """List the images, and build the network that is trained on them or read it from a checkpoint.

    Args:
        net: the network.
        data: the images.
        resumed: the checkpoint that the run goes on from, or None.
        runtime: says a line once.

    Returns:
        The model, its record (`classifier_record`), the training and the validation images.

    Raises:
        InputError: the network and the images do not fit each other.
    """
    model, state = read_classifier(resumed, net.arch) if resumed else (None, {})
    in_training = opening.known_images(data, state, runtime) if resumed else None
    train_images, val_images = opening.both_splits(data, in_training)
    classes = len(train_images.classes)
    record = state.get("model") or classifier_record(net.arch, classes, train_layer=net.train_layer)
    check_outputs(record["num_classes"], train_images, resumed)
    model = model or new_model(net, record, data.image_size)
    if net.fix_bn:
        fix_batch_norm(model)
    check_logits(model, net.arch, classes, data.image_size)
    return model, record, train_images, val_images


def open_run(
    net: NetOptions,
    data: DataOptions,
    output: OutputOptions,
    training: TrainingOptions,
    settings: Mapping[str, Any],
    runtime: opening.Runtime,
) -> Run:
    """Find what the run goes on from; it keeps the checkpoints of the last epoch and the best."""
    path, best_path = (
        runs.classifier_path(output.out, data.label, net.arch, output.suffix, best=best)
        for best in (False, True)
    )
    # The weights that it begins from are recorded by their contents.
    settings = {**settings, "weights": sha256(net.weights) if net.weights else None}
    return opening.run(output, training, runtime, path, settings, best_path=best_path)


def say_saved(
    run: Run,
    model: nn.Module,
    suffix: str,
    parser: Parser,
    words: Sequence[str],
    again: Sequence[str],
    runtime: opening.Runtime,
) -> None:
    """Say what was saved, and which command follows.

    That is to store both nets' features, or this command again with another seed.

    Args:
        run: that trained the model.
        model: what was trained.
        suffix: of this run's files.
        parser: of the options.
        words: the command line.
        again: the words by which the next step reads the same images.
        runtime: says a line once.
    """
    kept = f" and {run.best_path}" if run.best_path and run.best_path.exists() else ""
    runtime.say(
        f"saved {run.path}{kept}, best accuracy {run.best_acc1:.2f} %; the log is {run.log_path}"
    )
    arch, seed = run.settings["arch"], run.settings["seed"]
    if twin := resume.twin(run.path, run.settings):  # the same settings, another seed
        nets = ("--resume1", twin, "--resume2", run.path)
        named = ("--arch", arch) if is_own(arch) else ()
        cut = (*named, *usual_layer(model))
        runtime.say_next("ConvOutput.py", *nets, *cut, "--t_or_v", "both", *again)
        return
    # No such twin yet: propose the same training from the next seed.
    suffix = runs.join(suffix.removesuffix(f"sd{seed}").rstrip("_"), f"sd{seed + 1}")
    one_run = ("--resume", "--start_epoch", "--seed", "--suffix", "--export")
    same = [word for word in parser.without(words, one_run) if word != "--restart"]
    runtime.say_next("Training.py", *same, "--seed", seed + 1, "--suffix", suffix)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the step."""
    parser = build_parser()
    args = parser.parse_args(argv)
    output, training = OutputOptions.of(args), TrainingOptions.of(args)
    runtime = opening.start(RunOptions.of(args), output)
    # What no option names, the checkpoint says that the run goes on from.
    state = read_resumed(output, args.arch, DataOptions.of(args).label)
    data = DataOptions.of(args, state.get("data", {}))
    net = NetOptions.of(args, arch=args.arch or state.get("arch") or options.ARCH)
    if args.evaluate:
        evaluate(net, data, output, args.export, runtime)
        return

    # What the run goes on from; another run's checkpoint in its place is refused before an image is
    # read.
    run = open_run(net, data, output, training, options.settings(args, data, net), runtime)

    # The images, hashed and not yet decoded, and a network for their classes.
    model, record, train_images, val_images = open_model_and_images(net, data, run.resumed, runtime)
    opening.bind(data, runtime, train_images, val_images, outputs=run.path, restart=output.restart)
    # The optimiser; processes must know of parameters without a gradient.
    order_channels_last(model, data.image_size, runtime.device)
    fit = opening.fit(
        training,
        model,
        runtime,
        has_unused=runtime.world_size > 1 and has_unused_parameters(model, data.image_size),
    )
    run.restore(fit)
    if run.is_finished:
        runtime.say(
            f"{run.resumed} is trained for {run.start_epoch} epochs already, accuracy"
            f" {run.acc1:.2f} %"
        )
        # A run that was killed at its end has not written it yet
        export(args.export, model, record, run.state.get("data", {}), runtime)
        return
    opening.check_last_batch(data, model, train_images, runtime)
    opening.check_smoothing(training, train_images)

    # Nothing is left to refuse: decode the images.
    train_images = opening.decoded(data, train_images, runtime)
    val_images = opening.decoded(data, val_images, runtime)
    loader = opening.image_loader(data, train_images, runtime, shuffle=True)
    val_loaders = opening.validation_loaders(data, val_images, runtime)
    hits = known_hits(run.state, val_images)  # uint8 (N,): which images the net gets right
    preprocess = train_images.preprocessing(runtime.seed)
    rates = opening.rates_by_step(training, len(loader))
    # What every checkpoint says besides weights and epochs.
    facts: dict[str, Any] = {
        "arch": net.arch,
        "model": record,
        "data": opening.data_record(data, train_images),
        "images": opening.images_record(train_images, val_images),
    }
    runtime.say(
        f"{net.arch}: {len(train_images):,} training and {len(val_images):,} validation images, "
        f"{len(train_images.classes)} classes"
    )

    def saved_state(epochs: int) -> checkpoint.State:
        """Give what a run goes on from after so many epochs."""
        return fit.state(epochs, **facts, **run.accuracies, hits=hits)

    with run.keeping(fit, saved_state):
        for epoch in run.epochs():
            # Train: every epoch augments its images in its own way.
            step = partial(
                classify,
                preprocess=partial(preprocess, epoch=epoch),
                smoothing=training.label_smoothing,
            )
            with each_step(fit.optimizer, rates[epoch], fit.midway.taken(epoch)):
                metrics = train_one_epoch(fit, loader, step, epoch)
            # Evaluate.
            if run.is_due_to_validate(epoch):
                step = partial(classify, preprocess=preprocess)
                metrics |= validate(fit.net, val_loaders, runtime, step, hits)
                run.measured(main_accuracy(metrics, "val_"))
            # Write and save.
            run.write(epoch, metrics | {"lr": rates[epoch][-1]})
            run.save(epoch, saved_state(epoch + 1))

    again = parser.again((*options.IMAGES, *options.MACHINE, "out"), args, data)
    export(args.export, model, record, facts["data"], runtime)
    words = sys.argv[1:] if argv is None else argv
    say_saved(run, model, output.suffix, parser, words, again, runtime)


if __name__ == "__main__":
    main()
