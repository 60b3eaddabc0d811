"""Train a classifier: the nets A and B that the other steps compare (paper Sec. 4)."""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from utils import options
from utils.command import answer_early, command
from utils.errors import InputError
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
    options.add_training_options(parser, optim="SGD", lr=0.01, epochs=300)
    options.add_resume_options(parser)
    options.add_run_options(parser)
    options.add_output_options(parser)
    options.add_ignored_options(parser, "--fine_tune")
    return parser


def check_options(parser: Parser, args: Namespace) -> None:
    """Refuse to measure a network that no option names."""
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
from models.own import is_own, named_arch
from utils import checkpoint, opening, runs
from utils.data.images import ImageData, check_outputs
from utils.files import sha256
from utils.training import resume
from utils.training.classification import classify, known_hits, validate
from utils.training.engine import train_one_epoch
from utils.training.metrics import main_accuracy
from utils.training.run import Run
from utils.training.schedules import set_learning_rate


def fill(args: Namespace) -> None:
    """Take architecture, data set and image size from the checkpoint that --resume means.

    Options go before it.
    """
    state: checkpoint.State = {}
    path = runs.classifier_path(
        args.out, options.data_name(args), args.arch or options.ARCH, args.suffix
    )
    # Only the head of the file is read here: its tensors stay on the disk.
    if args.resume not in ("", "auto"):
        state = checkpoint.load(args.resume, mmap=True)
    elif args.resume and path.exists() and not args.restart:
        state = resume.read_own(path)
    if isinstance(arch := state.get("arch"), str):
        named_arch(arch, args.arch, path if args.resume == "auto" else args.resume)
    args.arch = args.arch or state.get("arch") or options.ARCH
    options.fill(args, state.get("data", {}))


def new_model(args: Namespace, record: Mapping[str, Any]) -> nn.Module:
    """Build the network that a record describes, as the options begin it."""
    sources = {
        "pretrained": args.pretrained,
        "weights": args.weights,
        "image_size": args.image_size,
    }
    model = build(**record, **sources)
    # A net that could not be read again would be found out only after its training.
    check_reloads(model, record, args.image_size)
    return model


def evaluate(args: Namespace, runtime: opening.Runtime) -> None:
    """Measure a network's accuracy on the validation images."""
    if args.resume:
        model, state = read_classifier(args.resume, args.arch)
        val_images = opening.images(args, "val", opening.known_images(args, state, runtime))
        args.arch = state["model"]["arch"]
        check_outputs(state["model"]["num_classes"], val_images, args.resume)
    else:
        val_images = opening.images(args, "val")
        model = new_model(args, classifier_record(args.arch, len(val_images.classes)))
    # Before images are decoded
    check_logits(model, args.arch, len(val_images.classes), args.image_size)
    loaders = opening.validation_loaders(args, opening.decoded(args, val_images, runtime), runtime)
    step = partial(classify, preprocess=val_images.preprocessing())
    runtime.say(runs.describe(validate(runtime.parallel(model), loaders, runtime, step)))
    export(args, model, classifier_record(args.arch, len(val_images.classes)), val_images, runtime)


def export(
    args: Namespace,
    model: nn.Module,
    record: Mapping[str, Any],
    images: ImageData,
    runtime: opening.Runtime,
) -> None:
    """Write the weights as --export says.

    They come with what a checkpoint says of the network and of its images.
    """
    if args.export and runtime.is_main:
        facts = {"arch": record["arch"], "model": record, "data": opening.data_record(args, images)}
        checkpoint.save_safetensors(args.export, model.state_dict(), facts)
        runtime.say(f"saved {args.export}")


def open_model_and_images(
    args: Namespace, runtime: opening.Runtime, resumed: Path | None
) -> tuple[nn.Module, dict[str, Any], ImageData, ImageData]:
    """List the images, and build the network that is trained on them or read it from a checkpoint.

    Args:
        args: the options, filled in.
        runtime: says a line once.
        resumed: the checkpoint that the run goes on from, or None.

    Returns:
        The model, its record (`classifier_record`), the training and the validation images.

    Raises:
        InputError: the network and the images do not fit each other.
    """
    model, state = read_classifier(resumed, args.arch) if resumed else (None, {})
    in_training = opening.known_images(args, state, runtime) if resumed else None
    train_images, val_images = opening.both_splits(args, in_training)
    classes = len(train_images.classes)
    record = state.get("model") or classifier_record(
        args.arch, classes, train_layer=args.train_layer
    )
    check_outputs(record["num_classes"], train_images, resumed)
    model = model or new_model(args, record)
    if args.fix_bn:
        fix_batch_norm(model)
    check_logits(model, args.arch, classes, args.image_size)
    return model, record, train_images, val_images


def next_words(
    args: Namespace, parser: Parser, words: Sequence[str], model: nn.Module, run: Run
) -> list[Any]:
    """Give the command that follows: both nets' features, or this command again with another seed.

    Args:
        args: the options, filled in.
        parser: of the options.
        words: the command line.
        model: what was trained.
        run: that trained it.
    """
    if twin := resume.twin(run.path, run.settings):  # the same settings, another seed
        nets = ("--resume1", twin, "--resume2", run.path)
        arch = ("--arch", args.arch) if is_own(args.arch) else ()
        cut = (*arch, *usual_layer(model))
        same = parser.again(args, (*options.IMAGES, *options.MACHINE, "out"))
        return ["ConvOutput.py", *nets, *cut, "--t_or_v", "both", *same]
    # No such twin yet: propose the same training from the next seed.
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
    # Where the checkpoint of the last epoch lies, and that of the best one.
    classifier_path = partial(
        runs.classifier_path, args.out, options.data_name(args), args.arch, args.suffix
    )
    path, best_path = classifier_path(), classifier_path(best=True)
    if args.evaluate:
        args.resume = str(path) if args.resume == "auto" else args.resume
        evaluate(args, runtime)
        return

    # What the run goes on from; another run's checkpoint in its place is refused before an image is
    # read.
    settings = options.settings(args, weights=sha256(args.weights) if args.weights else None)
    run = opening.run(args, runtime, path, settings, best_path=best_path)

    # The images, hashed and not yet decoded, and a network for their classes.
    model, record, train_images, val_images = open_model_and_images(args, runtime, run.resumed)
    opening.bind(args, runtime, train_images, val_images, outputs=path)
    unused = runtime.world_size > 1 and has_unused_parameters(model, args.image_size)
    # The optimiser; processes must know of parameters without a gradient.
    fit = opening.fit(args, model, runtime, has_unused=unused)
    run.restore(fit)
    if run.is_finished:
        runtime.say(
            f"{run.resumed} is trained for {run.start_epoch} epochs already, accuracy"
            f" {run.acc1:.2f} %"
        )
        return
    opening.check_last_batch(args, model, train_images, runtime)

    # Nothing is left to refuse: decode the images.
    train_images = opening.decoded(args, train_images, runtime)
    val_images = opening.decoded(args, val_images, runtime)
    loader = opening.image_loader(args, train_images, runtime, shuffle=True)
    val_loaders = opening.validation_loaders(args, val_images, runtime)
    hits = known_hits(run.state, val_images)  # uint8 (N,): which images the net gets right
    preprocess, rates = train_images.preprocessing(args.seed), opening.rates(args)
    # What every checkpoint says besides weights and epochs.
    facts = {
        "arch": args.arch,
        "model": record,
        "data": opening.data_record(args, train_images),
        "images": opening.images_record(train_images, val_images),
    }
    runtime.say(
        f"{args.arch}: {len(train_images):,} training and {len(val_images):,} validation images, "
        f"{len(train_images.classes)} classes"
    )

    with run:
        for epoch in run.epochs():
            # Train: every epoch augments its images in its own way.
            set_learning_rate(fit.optimizer, rates[epoch])
            step = partial(classify, preprocess=partial(preprocess, epoch=epoch))
            metrics = train_one_epoch(fit, loader, step, epoch)
            # Evaluate.
            if run.is_due_to_validate(epoch):
                step = partial(classify, preprocess=preprocess)
                metrics |= validate(fit.net, val_loaders, runtime, step, hits)
                run.measured(main_accuracy(metrics, "val_"))
            # Write and save.
            run.write(epoch, metrics | {"lr": rates[epoch]})
            run.save(epoch, fit.state(epoch + 1, **facts, **run.accuracies, hits=hits))

    # Say what was saved, and which command follows.
    kept = f" and {best_path}" if best_path.exists() else ""
    runtime.say(
        f"saved {path}{kept}, best accuracy {run.best_acc1:.2f} %; the log is {run.log_path}"
    )
    export(args, model, record, train_images, runtime)
    words = sys.argv[1:] if argv is None else argv
    runtime.say_next(*next_words(args, parser, words, model, run))


if __name__ == "__main__":
    main()
