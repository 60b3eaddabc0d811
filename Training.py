"""Train a classifier: the nets A and B that the other steps compare (paper Sec. 4)."""

import time
from collections.abc import Sequence

from torch import Tensor, nn

from models.classifiers import build, classifier_record, fix_batch_norm, read_classifier
from utils import checkpoint, options, runs
from utils.data import check_classes, normalise
from utils.engine import evaluate, make_optimizer, train_one_epoch
from utils.errors import InputError
from utils.losses import classification_loss
from utils.metrics import accuracies_percent, main_accuracy
from utils.runtime import Runtime, command, start
from utils.schedules import learning_rates, set_learning_rate


def build_parser() -> options.Parser:
    """Declare this step's options."""
    parser = options.Parser(__doc__)
    group = parser.add_argument_group("network")
    group.add_argument("-a", "--arch", help="a torchvision classifier, or one of the *_ft names; default: vgg16_bn")
    group.add_argument("--pretrained", action="store_true", help="start from torchvision's ImageNet weights")
    group.add_argument("--weights", metavar="FILE", help="start from the weights in a file")
    group.add_argument("--train_layer", type=int, default=34, help="of *_ft networks: first layer that is trained")
    group.add_argument("--fix_bn", action="store_true", help="keep BatchNorm as it is loaded")
    group.add_argument("-e", "--evaluate", action="store_true", help="only measure the accuracy of --resume")
    options.add_data_options(parser, batch_size=128, dataset="CUB200")
    options.add_training_options(parser, optim="SGD", lr=0.01, epochs=300)
    options.add_run_options(parser)
    options.add_ignored_options(parser, "--fine_tune")
    return parser


def classify(net: nn.Module, images: Tensor, targets: Tensor, _: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Classify a batch: images uint8 (N, 3, S, S), targets (N,) or multi-label (N, C) → loss, accuracies."""
    logits = net(normalise(images))
    return classification_loss(logits, targets), accuracies_percent(logits, targets)


def validate(net: nn.Module, loaders: dict[str, options.Loader], runtime: Runtime) -> dict[str, float]:
    """Evaluate on every part of the validation images; their mean over all images comes under `val_…`."""
    parts = {name: evaluate(net, loader, classify, runtime) for name, loader in loaders.items()}
    sizes = {name: len(loader.dataset) for name, loader in loaders.items()}  # type: ignore[arg-type]
    metrics = {}
    for metric in next(iter(parts.values())):
        total = sum(parts[name][metric] * sizes[name] for name in parts)
        metrics[f"val_{metric}"] = total / sum(sizes.values())
        metrics |= {f"val_{name}_{metric}": parts[name][metric] for name in parts if name}
    return metrics


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the step."""
    args = build_parser().parse_args(argv)
    runtime = start(args.device_ids, args.gpu, args.seed, args.amp, args.compile)
    val_images = options.open_images(args, "val", runtime)
    parts = val_images.parts or {"": None}
    val_loaders = {name: options.image_loader(args, val_images, runtime, part=part) for name, part in parts.items()}
    classes = val_images.classes

    own = runs.classifier_path(args.out, args.dataset, args.arch or "vgg16_bn", args.suffix)
    resumed = checkpoint.to_resume(args.resume, own)
    if resumed:
        model, state = read_classifier(resumed, args.arch, len(classes))
        check_classes(state.get("data", {}).get("classes", classes), classes, "the validation images")
        record = state["model"]
    else:
        state = {}
        record = classifier_record(args.arch or "vgg16_bn", len(classes), train_layer=args.train_layer)
        model = build(**record, pretrained=args.pretrained, weights=args.weights)
    arch = record["arch"]
    if args.fix_bn:
        fix_batch_norm(model)
    net = runtime.parallel(model)

    if args.evaluate:
        if not (resumed or args.pretrained or args.weights):
            raise InputError("--evaluate needs a trained network: name one with --resume")
        runtime.say(runs.describe(validate(net, val_loaders, runtime)))
        return

    train_images = options.open_images(args, "train", runtime)
    check_classes(classes, train_images.classes, "the training images")
    train_loader = options.image_loader(args, train_images, runtime, shuffle=True)
    optimizer = make_optimizer(
        args.optim, model.parameters(), lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay
    )
    scaler = runtime.grad_scaler()
    start_epoch = checkpoint.restore_training(state, resumed, optimizer, scaler) if resumed else 0
    start_epoch = start_epoch if args.start_epoch is None else args.start_epoch
    best_acc1 = float(state.get("best_acc1", 0))
    rates = learning_rates(
        args.lr, args.epochs, logspace=args.logspace, epoch_step=args.epoch_step, decay_factor=args.decay_factor
    )
    if start_epoch >= args.epochs:
        runtime.say(f"{resumed} is trained for {start_epoch} epochs already, top-1 {float(state.get('acc1', 0)):.2f} %")
        return

    log_folder = runs.log_folder(args.out, runs.join(args.dataset, arch, args.suffix))
    log = runs.RunLog(log_folder, start_epoch=start_epoch, active=runtime.is_main)
    runtime.say(
        f"{arch}: {len(train_images):,} training and {len(val_images):,} validation images, {len(classes)} classes"
    )
    for epoch in range(start_epoch, args.epochs):
        begun = time.monotonic()
        last = epoch + 1 == args.epochs
        set_learning_rate(optimizer, rates[epoch])
        metrics = train_one_epoch(
            net, train_loader, classify, optimizer, scaler, runtime, epoch=epoch, print_freq=args.print_freq
        )
        if last or (epoch + 1) % args.val_epoch == 0:
            metrics |= validate(net, val_loaders, runtime)
        metrics |= {"lr": rates[epoch], "seconds": time.monotonic() - begun}
        log.write(epoch, metrics)
        runtime.say(f"epoch {epoch + 1}/{args.epochs} · {runs.describe(metrics)}")

        validated = "val_Loss" in metrics
        acc1 = main_accuracy(metrics, "val_") if validated else None
        state = checkpoint.training_state(
            model, optimizer, scaler, epoch + 1, arch=arch, model=record, seed=args.seed,
            acc1=acc1 if validated else state.get("acc1"), best_acc1=max(best_acc1, acc1 or 0.0),
            data={"dataset": args.dataset, "sample_num": args.sample_num, "classes": classes,
                  "image_size": args.image_size},
        )  # fmt: skip
        if runtime.is_main and (last or (epoch + 1) % args.save_epoch == 0):
            checkpoint.save(own, state)
        if runtime.is_main and acc1 is not None and acc1 > best_acc1:
            checkpoint.save(runs.classifier_path(args.out, args.dataset, arch, args.suffix, best=True), state)
        best_acc1 = state["best_acc1"]
    log.close()
    runtime.say(f"saved {own}, best top-1 {best_acc1:.2f} %")


if __name__ == "__main__":
    main()
