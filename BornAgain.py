"""Train a series of born-again networks, each taught by the one before it (paper Sec. 4.5).

Generation g learns from the labels and from generation g - 1 (Furlanello et al. 2018). --resume T names the teacher of
the first generation that is trained. With --start_gen 1, T is generation 0, and nets 1, 2, … up to --generations - 1
follow. With --start_gen 0, T is no part of the series: a net 0 learns from it too. Without --resume, net 0 learns from
the labels alone, and a later --start_gen takes the net before it from model_checkpoints. The same command again keeps
the generations that are whole and goes on where the series stopped.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from models.classifiers import build, classifier_record, read_classifier
from utils import checkpoint, options, runs
from utils.data.batches import normalise
from utils.data.images import ImageData, check_classes
from utils.distillation.born_again import distillation_loss
from utils.distillation.teacher import Teacher, teacher_logits
from utils.files import sha256
from utils.runtime import Runtime, command, seed_everything, start
from utils.training.classification import classify, data_record, validate
from utils.training.engine import make_optimizer, train_one_epoch
from utils.training.losses import classification_loss
from utils.training.metrics import accuracies_percent, main_accuracy
from utils.training.schedules import due, geometric, learning_rates, set_learning_rate

# What one generation's checkpoint must agree on with the command that goes on with it.
RECORDED_OPTIONS = (
    "sample_num", "image_size", "batch_size", "optim", "lr", "momentum", "weight_decay", "epochs", "logspace",
    "epoch_step", "decay_factor", "tau", "lambd", "lambd_end",
)  # fmt: skip


def build_parser() -> options.Parser:
    """Declare this step's options."""
    # Resolving: --resume and --start_epoch mean something else, or nothing, in a series.
    parser = options.Parser(__doc__, conflict_handler="resolve")
    group = parser.add_argument_group("series")
    options.add_data_options(parser, batch_size=128)
    options.add_training_options(parser, optim="SGD", lr=1e-3, epochs=300)
    options.add_run_options(parser)
    options.add_ignored_options(parser, "--start_epoch")
    group.add_argument("-a", "--arch", help="a torchvision classifier; default: the teacher's, or vgg16_bn")
    group.add_argument(
        "--resume", default="", metavar="T", help="teacher of the first generation; none or auto: the series' own"
    )
    group.add_argument("-g", "--generations", type=int, default=5, help="networks of the series, generation 0 included")
    group.add_argument("--start_gen", type=int, default=0, help="first generation to train")
    group.add_argument("--gpu_teacher", type=int, metavar="N", help="GPU of a teacher that sees augmented images")
    group.add_argument("--tau", type=float, default=1.0, help="temperature of the teacher's and student's softmax")
    group.add_argument("--lambd", type=float, default=0.5, help="weight of the teacher in the loss, first epoch")
    group.add_argument("--lambd_end", type=float, default=0.5, help="the same in the last epoch; geometric between")
    return parser


def check(args: options.Namespace, parser: options.Parser) -> None:
    """Refuse values that make no series."""
    if not 0 <= args.start_gen < args.generations:
        parser.error(f"--start_gen {args.start_gen} is not in the series of generations 0 to {args.generations - 1}")
    if args.tau <= 0:
        parser.error(f"--tau must be positive, not {args.tau}")
    if args.lambd != args.lambd_end and min(args.lambd, args.lambd_end) <= 0:
        parser.error("--lambd and --lambd_end must both be positive where they differ")


def generation_path(args: options.Namespace, arch: str, generation: int) -> runs.Path:
    """`model_checkpoints/checkpoint_{dataset}_{arch}_{suffix}_gen{g}.pth.tar`."""
    return runs.classifier_path(args.out, args.dataset or "CUB200", arch, runs.join(args.suffix, f"gen{generation}"))


def first_teacher(args: options.Namespace) -> runs.Path | None:
    """Find the teacher of the first generation to train, if it has one."""
    if args.resume not in ("", "auto"):
        return runs.Path(args.resume)
    return generation_path(args, args.arch or "vgg16_bn", args.start_gen - 1) if args.start_gen else None


def distil(
    net: nn.Module, pixels: Tensor, targets: Tensor, indices: Tensor, *, teacher: Teacher, lambd: float, tau: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """CE + λ·τ²·mean over samples of −Σ softmax(teacher/τ)·log_softmax(student/τ), for a batch of photos."""
    logits = net(normalise(pixels))
    task = classification_loss(logits, targets)
    imitation = distillation_loss(logits, teacher(pixels, indices), tau)
    return task + lambd * imitation, {"CE": task, "KD": imitation, **accuracies_percent(logits, targets)}


def train_generation(
    generation: int,
    teacher_path: runs.Path | None,
    record: dict[str, Any],
    images: ImageData,
    val_loaders: dict[str, options.Loader],
    args: options.Namespace,
    runtime: Runtime,
) -> tuple[runs.Path, float]:
    """Train one network of the series, or what is left of its epochs.

    Returns:
        Its checkpoint and its accuracy in percent.
    """
    seed = args.seed + 10 * (generation - args.start_gen + 1)
    args, runtime = options.Namespace(**vars(args) | {"seed": seed}), replace(runtime, seed=seed)
    arch, classes = record["arch"], images.classes
    own = generation_path(args, arch, generation)
    facts = {"generation": generation, "seed": seed, "teacher": sha256(teacher_path) if teacher_path else None}
    facts |= {name: getattr(args, name) for name in RECORDED_OPTIONS}
    state = checkpoint.own_progress(own, "born_again", facts)
    start_epoch, acc1, best_acc1 = (state.get(name, 0) for name in ("epoch", "acc1", "best_acc1"))
    if start_epoch >= args.epochs:
        runtime.say(f"generation {generation} is trained already: {own}")
        return own, acc1

    teacher = None
    if teacher_path:
        model, _ = read_classifier(teacher_path, arch, len(classes))
        loader = options.image_loader(args, images, runtime)
        teacher = teacher_logits(model, loader, len(classes), runtime, folder=args.out, gpu=args.gpu_teacher)
    seed_everything(seed)
    model = read_classifier(own)[0] if state else build(**record)
    net = runtime.parallel(model)
    optimizer = make_optimizer(
        args.optim, model.parameters(), lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay
    )
    scaler = runtime.grad_scaler()
    if state:
        checkpoint.restore_training(state, own, optimizer, scaler)
    train_loader = options.image_loader(args, images, runtime, shuffle=True)
    rates = learning_rates(
        args.lr, args.epochs, logspace=args.logspace, epoch_step=args.epoch_step, decay_factor=args.decay_factor
    )
    lambdas = geometric(args.lambd, args.lambd_end, args.epochs)
    runtime.say(f"generation {generation}, seed {seed}, taught by {teacher_path or 'the labels alone'}")
    log_folder = runs.log_folder(args.out, runs.join(args.dataset, arch, args.suffix, f"gen{generation}"))
    log = runs.RunLog(log_folder, args.epochs, start_epoch=start_epoch, active=runtime.is_main)
    for epoch in range(start_epoch, args.epochs):
        set_learning_rate(optimizer, rates[epoch])
        step = functools.partial(distil, teacher=teacher, lambd=lambdas[epoch], tau=args.tau) if teacher else classify
        metrics = train_one_epoch(
            net, train_loader, step, optimizer, scaler, runtime, epoch=epoch, print_freq=args.print_freq
        )
        if due(epoch, args.val_epoch, args.epochs):
            metrics |= validate(net, val_loaders, runtime)
            acc1 = main_accuracy(metrics, "val_")
            best_acc1 = max(acc1, best_acc1)
        log.write(epoch, metrics | {"lr": rates[epoch]} | ({"lambda": lambdas[epoch]} if teacher else {}))
        if runtime.is_main and due(epoch, args.save_epoch, args.epochs):
            state = checkpoint.training_state(
                model, optimizer, scaler, epoch + 1,
                arch=arch, model=record, seed=seed, acc1=acc1, best_acc1=best_acc1, born_again=facts,
                data=data_record(args.dataset, args.sample_num, classes, args.image_size),
            )  # fmt: skip
            checkpoint.save(own, state)
    log.close()
    runtime.barrier()  # the next generation's teacher is read by every process
    return own, acc1


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the step."""
    parser = build_parser()
    args = parser.parse_args(argv)
    check(args, parser)
    runtime = start(args.device_ids, args.gpu, args.seed, args.amp, args.compile)
    teacher = first_teacher(args)
    state = read_classifier(teacher, args.arch)[1] if teacher else {}
    options.fill_from_checkpoint(args, state)
    images = options.open_images(args, "train", runtime)
    val_images = options.open_images(args, "val", runtime)
    check_classes(state.get("data", {}).get("classes", images.classes), images.classes, "the training images")
    check_classes(images.classes, val_images.classes, "the validation images")
    val_loaders = options.validation_loaders(args, val_images, runtime)
    record = state.get("model") or classifier_record(args.arch or "vgg16_bn", len(images.classes))

    lines = []
    for generation in range(args.start_gen, args.generations):
        teacher, acc1 = train_generation(generation, teacher, record, images, val_loaders, args, runtime)
        lines.append(f"{generation:>10}{acc1:>13.2f}  {teacher}")
    runtime.say("\n".join([f"{'generation':>10}{'accuracy, %':>13}  checkpoint", *lines]))


if __name__ == "__main__":
    main()
