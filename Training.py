"""Train a classifier: the nets A and B that the other steps compare (paper Sec. 4)."""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from models.classifiers import build, check_reloads, classifier_record, fix_batch_norm, read_classifier
from models.layers import usual_layer
from models.logits import check_logits, has_unused_parameters
from models.own import is_own, named_arch
from utils import checkpoint, opening, options, runs
from utils.data.images import ImageData, check_outputs
from utils.errors import InputError
from utils.files import sha256
from utils.parser import Namespace, Parser, some_path, whole
from utils.runtime import command
from utils.training import resume
from utils.training.classification import classify, known_hits, validate
from utils.training.engine import train_one_epoch
from utils.training.metrics import main_accuracy
from utils.training.schedules import due, set_learning_rate


def build_parser() -> Parser:
    """Declare this step's options."""
    parser = Parser(__doc__, "python Training.py --dataset CUB200 --arch vgg16_bn --seed 0 --suffix sd0")
    group = parser.add_argument_group("network")
    group.add_argument("-a", "--arch", help=f"{options.ARCHS}; default: {options.ARCH}")
    group.add_argument("--pretrained", action="store_true", help="start from torchvision's ImageNet weights")
    group.add_argument("--weights", type=some_path, metavar="FILE", help="start from the weights in a file")
    group.add_argument("--train_layer", type=whole(0), default=34, help="of *_ft networks: first layer that is trained")
    group.add_argument("--fix_bn", action="store_true", help="keep BatchNorm's running statistics as loaded")
    group.add_argument("-e", "--evaluate", action="store_true", help="only measure the accuracy of --resume")
    group.add_argument(
        "--export",
        type=some_path,
        metavar="FILE.safetensors",
        help="also write the weights for other programs; with -e those of --resume",
    )
    options.add_data_options(parser, batch_size=128)
    options.add_training_options(parser, optim="SGD", lr=0.01, epochs=300)
    options.add_resume_options(parser)
    options.add_run_options(parser)
    options.add_output_options(parser)
    options.add_ignored_options(parser, "--fine_tune")
    return parser


def fill(args: Namespace) -> None:
    """Take architecture, data set and image size from the checkpoint that --resume means, where no option says them."""
    state: checkpoint.State = {}
    own = runs.classifier_path(args.out, options.data_name(args), args.arch or options.ARCH, args.suffix)
    if args.resume not in ("", "auto"):
        state = checkpoint.load(args.resume, mmap=True)
    elif args.resume and own.exists() and not args.restart:
        state = resume.read_own(own)
    if isinstance(held := state.get("arch"), str):
        named_arch(held, args.arch, own if args.resume == "auto" else args.resume)
    args.arch = args.arch or state.get("arch") or options.ARCH
    options.fill(args, state.get("data", {}))


def new_model(args: Namespace, record: Mapping[str, Any]) -> nn.Module:
    """Build the network that a record describes, as the options begin it."""
    sources = {"pretrained": args.pretrained, "weights": args.weights, "image_size": args.image_size}
    model = build(**record, **sources)
    check_reloads(model, record, args.image_size)
    return model


def evaluate(args: Namespace, runtime: opening.Runtime) -> None:
    """Measure a network's accuracy on the validation images."""
    if args.resume:
        model, state = read_classifier(args.resume, args.arch)
        val_images = opening.images(args, "val", opening.known_images(args, state, runtime))
        args.arch = state["model"]["arch"]
        check_outputs(state["model"]["num_classes"], val_images, args.resume)
    elif args.pretrained or args.weights:
        val_images = opening.images(args, "val")
        model = new_model(args, classifier_record(args.arch, len(val_images.classes)))
    else:
        raise InputError("--evaluate needs a trained network: name one with --resume")
    check_logits(model, args.arch, len(val_images.classes), args.image_size)  # before images are decoded
    loaders = opening.validation_loaders(args, opening.decoded(args, val_images, runtime), runtime)
    step = partial(classify, preprocess=val_images.preprocessing())
    runtime.say(runs.describe(validate(runtime.parallel(model), loaders, runtime, step)))
    export(args, model, classifier_record(args.arch, len(val_images.classes)), val_images, runtime)


def export(
    args: Namespace, model: nn.Module, record: Mapping[str, Any], images: ImageData, runtime: opening.Runtime
) -> None:
    """Write the weights as --export says, with what a checkpoint says of the network and of its images."""
    if args.export and runtime.is_main:
        facts = {"arch": record["arch"], "model": record, "data": opening.data_record(args, images)}
        checkpoint.save_safetensors(args.export, model.state_dict(), facts)
        runtime.say(f"saved {args.export}")


def next_words(
    args: Namespace, parser: Parser, words: Sequence[str], model: nn.Module, own: Path, twin: Path | None
) -> list[object]:
    """Give the command that follows: both nets' features, or this command again with another seed.

    Args:
        args: the options, filled in.
        parser: of the options.
        words: the command line.
        model: what was trained.
        own: its checkpoint.
        twin: the checkpoint of the same settings and another seed, if there is one.
    """
    if twin:
        arch = ["--arch", args.arch] if is_own(args.arch) else []
        nets = ("--resume1", twin, "--resume2", own, *arch, *usual_layer(model))
        same = parser.again(args, (*options.IMAGES, *options.MACHINE, "out"))
        return ["ConvOutput.py", *nets, "--t_or_v", "both", *same]
    suffix = runs.join(args.suffix.removesuffix(f"sd{args.seed}").rstrip("_"), f"sd{args.seed + 1}")
    one_run = ("--resume", "--start_epoch", "--seed", "--suffix", "--export")
    again = [word for word in parser.without(words, one_run) if word != "--restart"]
    return ["Training.py", *again, "--seed", args.seed + 1, "--suffix", suffix]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the step."""
    parser = build_parser()
    args = parser.parse_args(argv)
    runtime = opening.start(args)
    fill(args)
    dataset = options.data_name(args)
    own = runs.classifier_path(args.out, dataset, args.arch, args.suffix)
    best = runs.classifier_path(args.out, dataset, args.arch, args.suffix, best=True)
    if args.evaluate:
        args.resume = str(own) if args.resume == "auto" else args.resume
        evaluate(args, runtime)
        return

    settings = options.settings(
        args, but=["evaluate", "export"], weights=sha256(args.weights) if args.weights else None
    )
    resumed = resume.find(args.resume, own, settings, restart=args.restart, extendable=not args.logspace)
    model, state = read_classifier(resumed, args.arch) if resumed else (None, {})
    known_images = opening.known_images(args, state, runtime) if resumed else None
    train_images, val_images = opening.both_splits(args, known_images)
    classes = train_images.classes
    record = state.get("model") or classifier_record(args.arch, len(classes), train_layer=args.train_layer)
    check_outputs(record["num_classes"], train_images, resumed)
    model = model or new_model(args, record)
    if args.fix_bn:
        fix_batch_norm(model)
    check_logits(model, args.arch, len(classes), args.image_size)
    opening.bind(args, runtime, train_images, val_images, own=own)
    has_unused = runtime.world_size > 1 and has_unused_parameters(model, args.image_size)
    fit = opening.fit(args, model, runtime, has_unused=has_unused)
    start_epoch = opening.first_epoch(args, fit, state, resumed)
    acc1 = float(state.get("acc1") or 0)
    goes_on = resumed == own and best.exists()  # the best of another run is in no file of this one
    best_acc1 = float(state.get("best_acc1") or 0) if goes_on else 0.0
    if start_epoch >= args.epochs:
        runtime.say(f"{resumed} is trained for {start_epoch} epochs already, accuracy {acc1:.2f} %")
        return

    opening.check_last_batch(args, model, train_images, runtime)
    log_folder = runs.log_folder(args.out, runs.join(dataset, args.arch, args.suffix))
    log = runs.RunLog(log_folder, args.epochs, start_epoch=start_epoch, active=runtime.is_main)
    train_images, val_images = (opening.decoded(args, data, runtime) for data in (train_images, val_images))
    loader = opening.image_loader(args, train_images, runtime, shuffle=True)
    val_loaders, hits = opening.validation_loaders(args, val_images, runtime), known_hits(state, val_images)
    rates, past, preprocess = (
        opening.rates(args),
        resume.history(state, settings),
        train_images.preprocessing(args.seed),
    )
    images_record = opening.images_record(train_images, val_images)
    runtime.say(
        f"{args.arch}: {len(train_images):,} training and {len(val_images):,} validation images, {len(classes)} classes"
    )
    with log:
        for epoch in range(start_epoch, args.epochs):
            set_learning_rate(fit.optimizer, rates[epoch])
            step = partial(classify, preprocess=partial(preprocess, epoch=epoch))
            metrics = train_one_epoch(fit, loader, step, epoch)
            validated = due(epoch, args.val_epoch, args.epochs)
            if validated:
                metrics |= validate(fit.net, val_loaders, runtime, partial(classify, preprocess=preprocess), hits)
                acc1 = main_accuracy(metrics, "val_")
            log.write(epoch, metrics | {"lr": rates[epoch]})
            is_best = validated and acc1 > best_acc1
            best_acc1 = acc1 if is_best else best_acc1
            state = fit.state(
                epoch + 1, arch=args.arch, model=record, data=opening.data_record(args, train_images),
                settings=settings, history=past, versions=resume.VERSIONS, acc1=acc1, best_acc1=best_acc1,
                hits=hits, images=images_record,
            )  # fmt: skip
            if runtime.is_main and due(epoch, args.save_epoch, args.epochs):
                checkpoint.save(own, state)
                log.saved(own, epoch + 1)
            if runtime.is_main and is_best:
                checkpoint.save(best, state)
    kept = f" and {best}" if best.exists() else ""
    runtime.say(f"saved {own}{kept}, best accuracy {best_acc1:.2f} %; the log is {log.path}")
    export(args, model, record, train_images, runtime)
    words = sys.argv[1:] if argv is None else argv
    script, *following = next_words(args, parser, words, model, own, resume.twin(own, settings))
    runtime.say_next(str(script), *following)


if __name__ == "__main__":
    main()
