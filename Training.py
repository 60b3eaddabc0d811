"""Train a classifier: the nets A and B that the other steps compare (paper Sec. 4)."""

from collections.abc import Sequence

from models.classifiers import build, classifier_record, fix_batch_norm, read_classifier
from utils import checkpoint, options, runs
from utils.data.images import check_classes
from utils.errors import InputError
from utils.runtime import command, start
from utils.training.classification import classify, data_record, validate
from utils.training.engine import make_optimizer, train_one_epoch
from utils.training.metrics import main_accuracy
from utils.training.schedules import due, learning_rates, set_learning_rate


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


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the step."""
    args = build_parser().parse_args(argv)
    runtime = start(args.device_ids, args.gpu, args.seed, args.amp, args.compile)
    val_images = options.open_images(args, "val", runtime)
    val_loaders = options.validation_loaders(args, val_images, runtime)
    classes = val_images.classes

    own = runs.classifier_path(args.out, args.dataset, args.arch or "vgg16_bn", args.suffix)
    resumed = checkpoint.to_resume(args.resume, own)
    data = data_record(args.dataset, args.sample_num, classes, args.image_size)
    training = {"seed": args.seed, "optim": args.optim}
    if args.resume == "auto":
        checkpoint.own_progress(own, "data", {name: data[name] for name in ("dataset", "sample_num", "image_size")})
        checkpoint.own_progress(own, "training", training)
    if resumed:
        model, state = read_classifier(resumed, args.arch, len(classes))
        check_classes(state.get("data", {}).get("classes", classes), classes, "the validation images")
        record = state["model"]
    else:
        state = {}
        record = classifier_record(args.arch or "vgg16_bn", len(classes), train_layer=args.train_layer)
        model = build(**record, pretrained=args.pretrained, weights=args.weights)
    arch = record["arch"]
    own = runs.classifier_path(args.out, args.dataset, arch, args.suffix)
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
    acc1, best_acc1 = float(state.get("acc1") or 0), float(state.get("best_acc1") or 0)
    rates = learning_rates(
        args.lr, args.epochs, logspace=args.logspace, epoch_step=args.epoch_step, decay_factor=args.decay_factor
    )
    if start_epoch >= args.epochs:
        runtime.say(f"{resumed} is trained for {start_epoch} epochs already, accuracy {acc1:.2f} %")
        return

    runtime.say(
        f"{arch}: {len(train_images):,} training and {len(val_images):,} validation images, {len(classes)} classes"
    )
    log_folder = runs.log_folder(args.out, runs.join(args.dataset, arch, args.suffix))
    log = runs.RunLog(log_folder, args.epochs, start_epoch=start_epoch, active=runtime.is_main)
    for epoch in range(start_epoch, args.epochs):
        set_learning_rate(optimizer, rates[epoch])
        metrics = train_one_epoch(
            net, train_loader, classify, optimizer, scaler, runtime, epoch=epoch, print_freq=args.print_freq
        )
        validated = due(epoch, args.val_epoch, args.epochs)
        if validated:
            metrics |= validate(net, val_loaders, runtime)
            acc1 = main_accuracy(metrics, "val_")
        log.write(epoch, metrics | {"lr": rates[epoch]})

        is_best, best_acc1 = validated and acc1 > best_acc1, max(acc1, best_acc1)
        state = checkpoint.training_state(
            model, optimizer, scaler, epoch + 1,
            arch=arch, model=record, data=data, training=training, acc1=acc1, best_acc1=best_acc1,
        )  # fmt: skip
        if runtime.is_main and due(epoch, args.save_epoch, args.epochs):
            checkpoint.save(own, state)
        if runtime.is_main and is_best:
            checkpoint.save(runs.classifier_path(args.out, args.dataset, arch, args.suffix, best=True), state)
    log.close()
    runtime.say(f"saved {own}, best accuracy {best_acc1:.2f} %")


if __name__ == "__main__":
    main()
