"""Compress a classifier: remove small weights, retrain the rest, perhaps let them share values (paper Sec. 4.4).

After Han et al. (2016): of every layer the weights of magnitude up to s · std of that layer are removed, and the rest
is trained for --epochs. With --share_bits the weights left in each layer are then clustered by k-means, and the
centroids are trained for --epochs more. The result is an ordinary checkpoint with zeros, named by the thresholds
(checkpoint_…_pruned0.2-1), and a JSON file beside it. The same command again goes on where it stopped.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from models.classifiers import read_classifier
from models.pruning import cluster, count_removed, prune, tie, zero_removed
from utils import checkpoint, opening, options, runs
from utils.data.images import ImageData
from utils.files import sha256, write_json
from utils.parser import Namespace, Parser, list_of, real, some_path, whole
from utils.runtime import Runtime, command
from utils.training import resume
from utils.training.classification import classify, validate
from utils.training.engine import train_one_epoch
from utils.training.metrics import main_accuracy
from utils.training.schedules import due, set_learning_rate


def build_parser() -> Parser:
    """Declare this step's options."""
    parser = Parser(__doc__, "python Pruning.py --resume NET.pth.tar --s_conv 0.2 --sweep [1,2]")
    group = parser.add_argument_group("compression")
    group.add_argument(
        "--resume", required=True, type=some_path, metavar="NET", help="checkpoint of the classifier to compress"
    )
    options.add_restart_option(group)
    group.add_argument("-a", "--arch", help="its architecture, if the file does not say")
    group.add_argument("--s_conv", type=real(), default=0.2, help="threshold of a convolution, in std of its weights")
    group.add_argument("--s_fc", type=real(), default=1.0, help="threshold of a linear layer, in std of its weights")
    group.add_argument(
        "--sweep", type=list_of(real()), default=[1.0], metavar="[0.5,1,2]",
        help="factors on both s_conv and s_fc; one compressed net for each",
    )  # fmt: skip
    group.add_argument(
        "--share_bits", type=int, choices=range(9), default=0, metavar="N",
        help="share at most 2^N weights in each layer, N up to 8; 0: none",
    )  # fmt: skip
    options.add_data_options(parser, batch_size=128)
    options.add_training_options(parser, optim="SGD", lr=1e-4, epochs=20, fewest_epochs=0)
    options.add_run_options(parser)
    options.add_output_options(parser)
    options.add_ignored_options(parser, "--start_epoch")
    return parser


def table(report: Mapping[str, Any]) -> str:
    """Lay out one compressed net: a line for each layer, one for all of its parameters, and the accuracies."""
    width = max(len(row["layer"]) for row in report["layers"]) + 2
    whole = {"layer": "all parameters", "weights": report["parameters"], "removed_percent": report["removed_percent"]}
    whole["kept"] = report["parameters"] - report["removed"]
    lines = [f"{'layer':<{width}}{'weights':>13}{'kept':>13}{'removed, %':>12}"]
    for row in [*report["layers"], whole]:
        lines.append(f"{row['layer']:<{width}}{row['weights']:>13,}{row['kept']:>13,}{row['removed_percent']:>12.2f}")
    lines += [
        f"nothing is left of {row['layer']}: its threshold is too high" for row in report["layers"] if not row["kept"]
    ]
    lines.append("accuracy, %: " + ", ".join(f"{stage} {a:.2f}" for stage, a in report["accuracy_percent"].items()))
    return "\n".join(lines)


def closing_table(reports: Sequence[Mapping[str, Any]]) -> str:
    """Lay out a sweep, a line for each compressed net."""
    stages = list(reports[0]["accuracy_percent"])
    lines = ["".join(f"{title:>12}" for title in ("s_conv", "s_fc", "removed, %", *stages)) + "  checkpoint"]
    for report in reports:
        factors = "".join(f"{report['options'][name]:>12g}" for name in ("s_conv", "s_fc"))
        percents = [report["removed_percent"], *report["accuracy_percent"].values()]
        lines.append(factors + "".join(f"{value:>12.2f}" for value in percents) + f"  {report['checkpoint']}")
    return "\n".join(lines)


def compress(
    factor: float,
    before_percent: float,
    images: ImageData,
    val_loaders: dict[str, options.Loader],
    args: options.Namespace,
    runtime: Runtime,
) -> dict[str, Any]:
    """Make one compressed net, or what is left of its epochs.

    Args:
        factor: on --s_conv and --s_fc.
        before_percent: accuracy of the net that is compressed.
        images: to retrain on.
        val_loaders: to measure accuracies on.
        args: the options.
        runtime: device, processes, precision.

    Returns:
        The report, which is also written beside the checkpoint.
    """
    model, source = read_classifier(args.resume, args.arch)
    record, arch = source["model"], source["model"]["arch"]
    s_conv, s_fc = factor * args.s_conv, factor * args.s_fc
    label = f"pruned{s_conv:g}-{s_fc:g}" + (f"-{args.share_bits}bit" if args.share_bits else "")
    own = runs.classifier_path(args.out, args.dataset, arch, runs.join(args.suffix, label))
    facts = {"source": sha256(args.resume), "s_conv": s_conv, "s_fc": s_fc}
    facts |= {name: getattr(args, name) for name in RECORDED_OPTIONS}
    state = checkpoint.own_progress(own, "pruning", facts)

    net = runtime.parallel(model)
    layers = prune(model, s_conv, s_fc)
    optimizer = make_optimizer(
        args.optim, model.parameters(), lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay
    )
    scaler = runtime.grad_scaler()
    labels: list[Tensor] | None = None  # of the clusters, once weights are shared
    optimizer.register_step_post_hook(lambda *_: tie(layers, labels) if labels else zero_removed(layers))

    def save(epoch: int, acc1: float) -> None:
        """Save what was trained for `epoch` epochs."""
        state = checkpoint.training_state(
            model, optimizer, scaler, epoch, arch=arch, model=record, seed=args.seed, acc1=acc1, best_acc1=acc1,
            data=data_record(args.dataset, args.sample_num, images.classes, args.image_size),
            pruning=facts, accuracy_percent=accuracy,
        )  # fmt: skip
        if runtime.is_main:
            checkpoint.save(own, state)

    def measure() -> float:
        return main_accuracy(validate(net, val_loaders, runtime), "val_")

    if state:
        model.load_state_dict(state["state_dict"])
        start_epoch, accuracy = checkpoint.restore_training(state, own, optimizer, scaler), state["accuracy_percent"]
        labels = cluster(layers, args.share_bits) if start_epoch > args.epochs else None
    else:
        start_epoch, accuracy = 0, {"before": before_percent, "pruned": measure()}
        save(0, accuracy["pruned"])
    runtime.say(f"thresholds {s_conv:g} std of convolutions and {s_fc:g} std of linear layers: {own}")
    train_loader = options.image_loader(args, images, runtime, shuffle=True)
    rates = learning_rates(
        args.lr, args.epochs, logspace=args.logspace, epoch_step=args.epoch_step, decay_factor=args.decay_factor
    )
    epochs = args.epochs * (2 if args.share_bits else 1)
    log_folder = runs.log_folder(args.out, runs.join(args.dataset, arch, args.suffix, label))
    log = runs.RunLog(log_folder, epochs, start_epoch=start_epoch, active=runtime.is_main)
    for epoch in range(start_epoch, epochs):
        if epoch == args.epochs:
            labels = cluster(layers, args.share_bits)
            tie(layers, labels)
            accuracy["shared"] = measure()
        stage_epoch = epoch % args.epochs
        set_learning_rate(optimizer, rates[stage_epoch])
        metrics = train_one_epoch(
            net, train_loader, classify, optimizer, scaler, runtime, epoch=epoch, print_freq=args.print_freq
        )
        if due(stage_epoch, args.val_epoch, args.epochs):
            metrics |= validate(net, val_loaders, runtime)
            accuracy["fine-tuned" if labels else "retrained"] = main_accuracy(metrics, "val_")
        log.write(epoch, metrics | {"lr": rates[stage_epoch]})
        if due(stage_epoch, args.save_epoch, args.epochs):
            save(epoch + 1, list(accuracy.values())[-1])
    log.close()

    if any(layer.weight[layer.removed].any() for layer in layers):
        raise RuntimeError(f"a removed weight of {own} is no longer zero")
    report = {
        "checkpoint": own.name, "source": {"path": str(args.resume), "sha256": facts["source"]}, "arch": arch,
        "dataset": args.dataset, "accuracy_percent": accuracy, "options": facts, **count_removed(model, layers),
    }  # fmt: skip
    if runtime.is_main:
        write_json(own.with_name(own.name.removesuffix(".pth.tar") + ".json"), report)
    runtime.say(table(report))
    return report


@command
def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run the step; returns the reports that are written beside the checkpoints."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if min([args.s_conv, args.s_fc, *args.sweep]) < 0 or not args.sweep:
        parser.error("--s_conv, --s_fc and the factors of --sweep must not be negative")
    if not 0 <= args.share_bits <= 8 or (args.share_bits and not args.epochs):
        parser.error("--share_bits takes 1 to 8 bits (0: none) and needs --epochs to train the shared weights")
    runtime = start(args.device_ids, args.gpu, args.seed, args.amp, args.compile)
    model, state = read_classifier(args.resume, args.arch)
    options.fill_from_checkpoint(args, state)
    images = options.open_images(args, "train", runtime)
    val_images = options.open_images(args, "val", runtime)
    check_classes(state.get("data", {}).get("classes", images.classes), images.classes, "the training images")
    check_classes(images.classes, val_images.classes, "the validation images")
    val_loaders = options.validation_loaders(args, val_images, runtime)
    before = main_accuracy(validate(runtime.parallel(model), val_loaders, runtime), "val_")
    del model
    reports = [compress(factor, before, images, val_loaders, args, runtime) for factor in args.sweep]
    if len(reports) > 1:
        runtime.say(closing_table(reports))
    return reports


if __name__ == "__main__":
    main()
