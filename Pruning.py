"""Compress a classifier: remove small weights, and retrain the others (paper Sec. 4.4).

The retrained weights may share values.

After Han et al. (2016): of every layer the weights of magnitude up to s · std of that layer are
removed, and the rest is trained for --epochs. With --share_bits the weights left in each layer are
then clustered by k-means, and the centroids are trained for --epochs more. The result is an
ordinary checkpoint with zeros, named by the thresholds (checkpoint_…_pruned0.2-1), and a JSON file
beside it. The same command again goes on where it stopped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from utils import options
from utils.command import answer_early, command
from utils.option_groups import DataOptions, Group, OutputOptions, RunOptions, TrainingOptions
from utils.parser import Namespace, Parser, architecture, checkpoint_file, list_of, real


def build_parser() -> Parser:
    """Declare this step's options."""
    parser = Parser(
        __doc__,
        "python Pruning.py --resume NET.pth.tar --s_conv 0.2 --sweep [1,2]",
        check=check_options,
    )
    group = parser.add_argument_group("compression")
    group.add_argument(
        "--resume",
        neutral=True,
        required=True,
        type=checkpoint_file,
        metavar="NET",
        help="checkpoint of the classifier to compress",
    )
    options.add_keeping_options(group)
    group.add_argument(
        "-a", "--arch", type=architecture, help="its architecture, if the file does not say"
    )
    group.add_argument(
        "--s_conv",
        type=real(),
        default=0.2,
        help="threshold of a convolution, in std of its weights",
    )
    group.add_argument(
        "--s_fc",
        type=real(),
        default=1.0,
        help="threshold of a linear layer, in std of its weights",
    )
    group.add_argument(
        "--sweep",
        neutral=True,
        type=list_of(real()),
        default=[1.0],
        metavar="[0.5,1,2]",
        help="factors on both s_conv and s_fc; one compressed net for each",
    )
    group.add_argument(
        "--share_bits",
        type=int,
        choices=range(9),
        default=0,
        metavar="N",
        help="share at most 2^N weights in each layer, N up to 8; 0: none",
    )
    group.add_argument(
        "--share_lr", type=real(), default=1e-6, help="first learning rate of the centroids"
    )
    options.add_data_options(parser, batch_size=128)
    options.add_training_options(parser, optim="SGD", lr=1e-4, epochs=20, fewest_epochs=0)
    options.add_run_options(parser)
    options.add_output_options(parser)
    options.add_ignored_options(parser, "--start_epoch")
    return parser


@dataclass(frozen=True)
class CompressionOptions(Group):
    """The classifier, and what is removed of it or shared.

    Attributes:
        resume: its checkpoint.
        arch: its architecture, if an option names it.
        s_conv, s_fc: thresholds of a convolution and of a linear layer, in std of its weights.
        share_bits: at most 2^N values in each layer; 0: none are shared.
        share_lr: the first learning rate of the shared values.
    """

    resume: str
    arch: str | None
    s_conv: float
    s_fc: float
    share_bits: int
    share_lr: float


def check_options(parser: Parser, args: Namespace) -> None:
    """Refuse options that contradict each other."""
    if args.share_bits and not args.epochs:
        parser.error("--share_bits needs --epochs to train the shared weights")


# Help, a wrong option and a missing file are answered before PyTorch is loaded, which takes seconds.
if __name__ == "__main__":
    answer_early(build_parser())

from torch import nn

from models.classifiers import read_classifier
from models.layers import usual_layer
from models.logits import check_logits, has_unused_parameters
from models.pruning import (
    PrunedWeight,
    cluster,
    count_removed,
    prune,
    train_centroids,
    zero_removed,
)
from utils import checkpoint, opening, runs
from utils.data.images import ImageData, check_outputs
from utils.files import sha256, write_json
from utils.report.tables import compression_table, sweep_table
from utils.runtime import Runtime
from utils.training.classification import classify, validate
from utils.training.engine import Fit, train_one_epoch
from utils.training.metrics import main_accuracy
from utils.training.run import Run
from utils.training.schedules import set_learning_rate


class Compression(NamedTuple):
    """What all factors of a sweep have in common.

    Attributes:
        options: the classifier, and what is removed of it.
        data: the images.
        training: optimiser and epochs of the retraining.
        output: where the nets are saved.
        settings: what is recorded of these, but the factor's thresholds.
    """

    options: CompressionOptions
    data: DataOptions
    training: TrainingOptions
    output: OutputOptions
    settings: Mapping[str, Any]


def measure(
    net: nn.Module, val_images: ImageData, loaders: opening.Loaders, runtime: Runtime
) -> float:
    """Give a net's accuracy in percent, on images as it reads them."""
    step = partial(classify, preprocess=val_images.preprocessing())
    return main_accuracy(validate(net, loaders, runtime, step), "val_")


def keep_removed(fit: Fit, layers: Sequence[PrunedWeight]) -> None:
    """Keep what was removed at zero through every step of the optimiser."""
    fit.optimizer.register_step_post_hook(lambda *_: zero_removed(layers))


def share(
    fit: Fit, layers: Sequence[PrunedWeight], bits: int, lr: float, training: TrainingOptions
) -> Fit:
    """Cluster the weights, and give the centroids their optimiser.

    That optimiser remembers nothing of the weights.
    """
    fit = replace(fit, optimizer=opening.optimizer(training, fit.model))
    train_centroids(fit.optimizer, layers, cluster(layers, bits), lr)
    return fit


def open_run(compression: Compression, arch: str, factor: float, runtime: Runtime) -> Run:
    """Find what the net of a factor on --s_conv and --s_fc goes on from."""
    choice, data, training, output, settings = compression
    s_conv, s_fc, bits = factor * choice.s_conv, factor * choice.s_fc, choice.share_bits
    # Each factor has a file name of its thresholds, so a sweep never overwrites.
    label = f"pruned{s_conv:g}-{s_fc:g}" + (f"-{bits}bit" if bits else "")
    return opening.run(
        output,
        training,
        runtime,
        runs.classifier_path(output.out, data.label, arch, runs.join(output.suffix, label)),
        {**settings, "arch": arch, "s_conv": s_conv, "s_fc": s_fc},
        extendable=False,
        stages=2 if bits else 1,  # retrained, then the shared weights trained
        again="the same command",
    )


def compress(
    run: Run,
    before_percent: float,
    images: ImageData,
    val_images: ImageData,
    val_loaders: opening.Loaders,
    compression: Compression,
    runtime: Runtime,
) -> dict[str, Any]:
    """Make one compressed net, or what is left of its epochs.

    Args:
        run: where it is saved, and what it goes on from.
        before_percent: accuracy of the net that is compressed.
        images: to retrain on.
        val_images: what accuracies are measured on.
        val_loaders: of these.
        compression: the options.
        runtime: device, processes, precision.

    Returns:
        The report, which is also written beside the checkpoint.
    """
    choice, data, training, *_ = compression
    model, original = read_classifier(choice.resume, choice.arch)
    unused = runtime.world_size > 1 and has_unused_parameters(model, data.image_size)
    fit = opening.fit(training, model, runtime, has_unused=unused)
    bits, share_lr = choice.share_bits, choice.share_lr

    # Remove small weights, and keep them at zero through every step of the optimiser.
    s_conv, s_fc = run.settings["s_conv"], run.settings["s_fc"]
    layers = prune(model, s_conv, s_fc)
    keep_removed(fit, layers)
    if run.resumed:
        # After `prune`, whose thresholds are of the original weights, as in the first run.
        model.load_state_dict(run.state["state_dict"])
        if run.start_epoch > training.epochs or run.is_within(training.epochs):
            fit = share(fit, layers, bits, share_lr, training)
        run.restore(fit)
        accuracy = run.state["accuracy_percent"]
    else:
        accuracy = {
            "before": before_percent,
            "pruned": measure(fit.net, val_images, val_loaders, runtime),
        }
    runtime.say(
        f"thresholds {s_conv:g} std of convolutions and {s_fc:g} std of linear layers: {run.path}"
    )

    loader = opening.image_loader(data, images, runtime, shuffle=True)
    preprocess = images.preprocessing(runtime.seed)
    rates, share_rates = opening.rates(training), opening.rates(training, share_lr)
    facts = {
        "arch": original["model"]["arch"],
        "model": original["model"],
        "data": opening.data_record(data, images),
        "images": opening.images_record(images, val_images),
        "accuracy_percent": accuracy,
    }

    def state(epochs: int) -> checkpoint.State:
        """Give what a run goes on from; whatever was measured last is the accuracy."""
        acc1 = list(accuracy.values())[-1]
        return fit.state(epochs, **facts, acc1=acc1, best_acc1=acc1)

    with run.keeping(fit, state):
        if not run.resumed:
            run.save_last(0, state(0))
        for epoch in run.epochs():
            # The second stage: weights of a layer share values, the centroids, which are a second
            # group of parameters.
            sharing, stage_epoch = epoch >= training.epochs, epoch % training.epochs
            if epoch == training.epochs and not fit.midway.taken(epoch):
                fit = share(fit, layers, bits, share_lr, training)
                accuracy["shared"] = measure(fit.net, val_images, val_loaders, runtime)
            # Train.
            lr = rates[stage_epoch]
            set_learning_rate(fit.optimizer, *([lr, share_rates[stage_epoch]] if sharing else [lr]))
            step = partial(classify, preprocess=partial(preprocess, epoch=epoch))
            metrics = train_one_epoch(fit, loader, step, epoch)
            # Evaluate.
            if run.is_due_to_validate(epoch):
                step = partial(classify, preprocess=preprocess)
                metrics |= validate(fit.net, val_loaders, runtime, step)
                accuracy["fine-tuned" if sharing else "retrained"] = main_accuracy(metrics, "val_")
            # Write and save.
            run.write(epoch, metrics | {"lr": lr})
            run.save(epoch, state(epoch + 1))

    # The promise of the method, checked on the weights that were saved.
    if any(layer.weight[layer.removed].any() for layer in layers):
        raise RuntimeError(f"a removed weight of {run.path} is no longer zero")
    report = {
        "checkpoint": run.path.name,
        "source": {"path": choice.resume, "sha256": run.settings["compressed"]},
        "arch": original["model"]["arch"],
        "dataset": data.label,
        "accuracy_percent": accuracy,
        "options": run.settings,
        **count_removed(model, layers),
    }
    report_path = run.path.with_name(run.path.name.removesuffix(".pth.tar") + ".json")
    if runtime.is_main:
        write_json(report_path, report)
    table = compression_table(report)
    runtime.say(f"{table}\nsaved {run.path} and {report_path}; the log is {run.log_path}")
    return report


@command
def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run the step; returns the reports that are written beside the checkpoints."""
    parser = build_parser()
    args = parser.parse_args(argv)
    output = OutputOptions.of(args, resume="auto")  # --resume names the net in this step
    runtime = opening.start(RunOptions.of(args), output)

    # The net to compress, and what each compressed one goes on from.
    model, state = read_classifier(args.resume, args.arch)
    arch = state["model"]["arch"]
    data = DataOptions.of(args, state.get("data", {}))
    compression = Compression(
        CompressionOptions.of(args),
        data,
        TrainingOptions.of(args),
        output,
        options.settings(args, data) | {"compressed": sha256(args.resume)},
    )
    factors = [open_run(compression, arch, factor, runtime) for factor in args.sweep]

    # The images, hashed and not yet decoded.
    known_images = opening.known_images(data, state, runtime)
    images, val_images = opening.both_splits(data, known_images)
    check_outputs(state["model"]["num_classes"], images, args.resume)
    check_logits(model, arch, len(images.classes), data.image_size)
    paths = [run.path for run in factors]
    opening.bind(data, runtime, images, val_images, outputs=paths, restart=output.restart)
    if args.epochs:
        opening.check_last_batch(data, model, images, runtime)
    layer = usual_layer(model)

    # Nothing is left to refuse: decode the images, measure the net, compress it.
    images, val_images = (opening.decoded(data, split, runtime) for split in (images, val_images))
    val_loaders = opening.validation_loaders(data, val_images, runtime)
    before = measure(runtime.parallel(model), val_images, val_loaders, runtime)
    # Each factor reads the original anew; this one would only take memory.
    del model
    reports = [
        compress(run, before, images, val_images, val_loaders, compression, runtime)
        for run in factors
    ]
    if len(reports) > 1:
        runtime.say(sweep_table(reports))
    # The command that follows compares the smallest net with the original.
    named = options.arch_words(("--arch1", "--arch2"), args.arch, args.arch)
    nets = ("--resume1", paths[-1], "--resume2", args.resume, *named, *layer)
    same = parser.again((*options.IMAGES, *options.MACHINE, "out"), args, data)
    runtime.say_next("ConvOutput.py", *nets, "--t_or_v", "both", *same)
    return reports


if __name__ == "__main__":
    main()
