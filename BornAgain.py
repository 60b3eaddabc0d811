"""Train a series of born-again networks, each taught by the one before it (paper Sec. 4.5).

Generation g learns from the labels and from generation g - 1 (Furlanello et al. 2018). --resume T
names the teacher of the first one that is trained: with --start_gen 1, T is generation 0; with 0, T
is no part of the series. Without it, net 0 learns from the labels alone, and a later --start_gen
takes the net before it from model_checkpoints. The same command again keeps the generations that
are whole and goes on where the series stopped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from utils import options
from utils.command import answer_early, command
from utils.option_groups import DataOptions, Group, OutputOptions, RunOptions, TrainingOptions
from utils.parser import Namespace, Parser, architecture, checkpoint_or_auto, real, whole


def build_parser() -> Parser:
    """Declare this step's options."""
    parser = Parser(
        __doc__,
        "python BornAgain.py --start_gen 1 --resume TEACHER.pth.tar -a vgg16_bn --lr 0.01",
        check=check_options,
    )
    group = parser.add_argument_group("series")
    group.add_argument(
        "-a",
        "--arch",
        type=architecture,
        help=f"{options.ARCHS}; default: the teacher's, or {options.ARCH}",
    )
    group.add_argument(
        "--student_arch",
        neutral=True,
        type=architecture,
        metavar="ARCH",
        help="of the series, where it is not the teacher's",
    )
    group.add_argument(
        "--resume",
        neutral=True,
        type=checkpoint_or_auto,
        default="",
        metavar="T",
        help="first one's teacher; none or auto: the series' own",
    )
    options.add_keeping_options(group)
    group.add_argument(
        "-g",
        "--generations",
        neutral=True,
        type=whole(1),
        default=5,
        help="networks of the series, with number 0",
    )
    group.add_argument(
        "--start_gen", neutral=True, type=whole(0), default=0, help="first generation to train"
    )
    group.add_argument(
        "--gpu_teacher",
        neutral=True,
        type=whole(0),
        metavar="N",
        help="GPU of a teacher that sees augmented images",
    )
    group.add_argument(
        "--tau", type=real(above=0), default=1.0, help="temperature of both softmaxes"
    )
    group.add_argument(
        "--lambd", type=real(), default=0.5, help="weight of the teacher in the loss, first epoch"
    )
    group.add_argument(
        "--lambd_end",
        type=real(),
        default=0.5,
        help="the same in the last epoch; geometric between",
    )
    options.add_data_options(parser, batch_size=128)
    options.add_training_options(parser, optim="SGD", lr=1e-3, epochs=300, short=True)
    options.add_run_options(parser)
    options.add_output_options(parser)
    options.add_ignored_options(parser, "--start_epoch")
    return parser


@dataclass(frozen=True)
class SeriesOptions(Group):
    """The generations, and how each is taught by the one before.

    Attributes:
        arch: the architecture; None: the teacher's.
        student_arch: of the series, where it is not the teacher's.
        generations: nets of the series, with number 0.
        start_gen: the first generation to train.
        gpu_teacher: GPU of a teacher that sees augmented images.
        tau: temperature of both softmaxes.
        lambd, lambd_end: weight of the teacher in the loss, in the first and in the last epoch.
    """

    arch: str | None
    student_arch: str | None
    generations: int
    start_gen: int
    gpu_teacher: int | None
    tau: float
    lambd: float
    lambd_end: float

    @property
    def numbers(self) -> range:
        """The generations to train."""
        return range(self.start_gen, self.generations)


def check_options(parser: Parser, args: Namespace) -> None:
    """Refuse values that make no series, and two schedules."""
    options.check_schedule(parser, args)
    if args.start_gen >= args.generations:
        parser.error(
            f"--start_gen {args.start_gen} is not in the series of generations 0 to"
            f" {args.generations - 1}"
        )
    if args.lambd != args.lambd_end and min(args.lambd, args.lambd_end) <= 0:
        parser.error("--lambd and --lambd_end must both be positive where they differ")
    if args.student_arch and args.resume in ("", "auto"):
        parser.error(
            "--student_arch is of nets that learn from another one: name that by --resume TEACHER"
        )


# Help, a wrong option and a missing file are answered before PyTorch is loaded, which takes seconds.
if __name__ == "__main__":
    answer_early(build_parser())

from torch import Tensor, nn

from distillation.born_again import distillation_loss
from distillation.teacher import Teacher, teacher_logits
from models.classifiers import build, check_reloads, classifier_record, read_classifier
from models.frozen import freeze_for_inference
from models.layers import usual_layer
from models.logits import check_logits, has_unused_parameters
from models.memory_order import order_channels_last
from utils import checkpoint, opening, runs
from utils.data.batches import Preprocessing
from utils.data.images import ImageData, check_outputs
from utils.files import sha256
from utils.normalisation import recorded_normalisation
from utils.pixels import FromPixels
from utils.runtime import Runtime, seed_everything
from utils.training.classification import classify, known_hits, validate
from utils.training.engine import train_one_epoch
from utils.training.losses import classification_loss
from utils.training.metrics import accuracies_percent, main_accuracy
from utils.training.run import Run
from utils.training.schedules import each_step, geometric


class Series(NamedTuple):
    """What all generations have in common.

    Attributes:
        options: how many there are, and how each is taught.
        data: their images.
        training: their optimiser and epochs.
        output: where they are saved.
        settings: what is recorded of these, but each generation's own: its architecture, its seed,
            its teacher.
    """

    options: SeriesOptions
    data: DataOptions
    training: TrainingOptions
    output: OutputOptions
    settings: Mapping[str, Any]

    def path(self, arch: str, generation: int) -> Path:
        """Say where a generation is saved."""
        return generation_path(self.output, self.data.label, arch, generation)


def generation_path(output: OutputOptions, label: str, arch: str, generation: int) -> Path:
    """`model_checkpoints/checkpoint_{dataset}_{arch}_{suffix}_gen{g}.pth.tar`."""
    return runs.classifier_path(
        output.out, label, arch, runs.join(output.suffix, f"gen{generation}")
    )


def open_run(
    series: Series, arch: str, generation: int, runtime: Runtime, **teacher: str | None
) -> Run:
    """Find what a generation goes on from.

    Its settings hold its teacher's hash, as far as that is known.
    """
    # Every generation begins from other random weights.
    seed = runtime.seed + 10 * (generation - series.options.start_gen + 1)
    described = {"arch": arch, "generation": generation, "seed": seed, **teacher}
    # A schedule that spans all epochs, of the rate or of λ, changes if the epochs do.
    has_one_weight = series.options.lambd == series.options.lambd_end
    return opening.run(
        series.output,
        series.training,
        runtime,
        series.path(arch, generation),
        {**series.settings, **described},
        extendable=series.training.is_extendable and has_one_weight,
        again="the same command",
    )


def check_series(series: Series, arch: str, teacher: Path | None, runtime: Runtime) -> None:
    """Refuse what another run left under the name of any generation.

    A teacher counts once it is trained.
    """
    settings = {"teacher": sha256(teacher) if teacher else None}
    for generation in series.options.numbers:
        # `open_run` raises where a file is another run's; what it finds is read when its turn
        # comes.
        run = open_run(series, arch, generation, runtime, **settings)
        # The hash of a teacher that is still to be trained is not known: it is not compared.
        settings = {"teacher": sha256(run.path)} if run.is_finished else {}


def distil(
    net: nn.Module,
    pixels: Tensor,
    targets: Tensor,
    indices: Tensor,
    *,
    preprocess: Preprocessing,
    epoch: int,
    teacher: Teacher,
    lambd: float,
    tau: float,
    smoothing: float = 0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of a batch of photos: the labels' and the teacher's.

    CE + λ·τ² · the mean over samples of −Σ softmax(teacher/τ) · log_softmax(student/τ)
    """
    # The teacher sees the same crop and flip as the student, before either normalises it.
    augmented = preprocess.augmented(pixels, indices, epoch)
    logits = net(preprocess(augmented))
    task = classification_loss(logits, targets, smoothing)
    # Which has constants of its own
    imitation = distillation_loss(logits, teacher(augmented, indices), tau)
    return task + lambd * imitation, {
        "CE": task,
        "KD": imitation,
        **accuracies_percent(logits, targets),
    }


def open_teacher(
    generation: int, path: Path, arch: str, images: ImageData, series: Series, runtime: Runtime
) -> Teacher:
    """Open a generation's teacher, and give its logits (N, C) for the images.

    It reads the images by its normalisation, which may be another than the student's.

    Args:
        generation: that is taught.
        path: of the teacher.
        arch: of the series; the first teacher may have another one.
        images: to learn from.
        series: the options.
        runtime: device, processes, precision, and the generation's seed.
    """
    first = generation == series.options.start_gen
    classes = len(images.classes)
    model, state = read_classifier(path, series.options.arch if first else arch, classes)
    constants = recorded_normalisation(state.get("data", {})) or images.normalisation
    net = FromPixels(freeze_for_inference(model, runtime.device), constants)
    loader = opening.image_loader(series.data, images, runtime)
    folder, gpu = series.output.out, series.options.gpu_teacher
    return teacher_logits(net, loader, classes, runtime, folder=folder, gpu=gpu)


def train_generation(
    generation: int,
    teacher_path: Path | None,
    record: dict[str, Any],
    images: ImageData,
    val_images: ImageData,
    series: Series,
    runtime: Runtime,
) -> tuple[Path, float]:
    """Train one network of the series, or what remains of its epochs.

    It gives the network's file and its accuracy in percent.
    """
    # What the generation goes on from; it has a seed of its own.
    hashed = sha256(teacher_path) if teacher_path else None
    run = open_run(series, record["arch"], generation, runtime, teacher=hashed)
    if run.is_finished:
        runtime.say(f"generation {generation} is trained already: {run.path}")
        return run.path, run.acc1
    runtime = replace(runtime, seed=run.settings["seed"])
    _, data, training, *_ = series

    # The teacher, then the student.
    teacher = None
    if teacher_path:
        teacher = open_teacher(generation, teacher_path, record["arch"], images, series, runtime)
    seed_everything(runtime.seed)
    if run.resumed:
        model, _ = read_classifier(run.resumed, record["arch"])
    else:
        model = build(**record, image_size=data.image_size)
    unused = runtime.world_size > 1 and has_unused_parameters(model, data.image_size)
    order_channels_last(model, data.image_size, runtime.device)
    fit = opening.fit(training, model, runtime, has_unused=unused)
    run.restore(fit)

    # The data, the rates, and λ, which falls or rises geometrically over the epochs.
    loader = opening.image_loader(data, images, runtime, shuffle=True)
    val_loaders = opening.validation_loaders(data, val_images, runtime)
    hits = known_hits(run.state, val_images)  # uint8 (N,): which images the net gets right
    preprocess = images.preprocessing(runtime.seed)
    rates = opening.rates_by_step(training, len(loader))
    lambdas = geometric(series.options.lambd, series.options.lambd_end, training.epochs)
    # What every checkpoint of this generation says besides weights and epochs.
    facts = {
        "arch": record["arch"],
        "model": record,
        "data": opening.data_record(data, images),
        "images": opening.images_record(images, val_images),
    }
    taught_by = teacher_path or "the labels alone"
    runtime.say(f"generation {generation}, seed {runtime.seed}, taught by {taught_by}")

    def state(epochs: int) -> checkpoint.State:
        """Give what a run goes on from after so many epochs."""
        return fit.state(epochs, **facts, **run.accuracies, hits=hits)

    with run.keeping(fit, state):
        for epoch in run.epochs():
            # Train: on the labels alone, or on what the teacher makes of the same augmented images
            # too.
            smoothing = training.label_smoothing
            augmented = partial(preprocess, epoch=epoch)
            step = partial(classify, preprocess=augmented, smoothing=smoothing)
            if teacher:
                step = partial(
                    distil,
                    preprocess=preprocess,
                    epoch=epoch,
                    teacher=teacher,
                    lambd=lambdas[epoch],
                    tau=series.options.tau,
                    smoothing=smoothing,
                )
            with each_step(fit.optimizer, rates[epoch], fit.midway.taken(epoch)):
                metrics = train_one_epoch(fit, loader, step, epoch)
            # Evaluate.
            if run.is_due_to_validate(epoch):
                step = partial(classify, preprocess=preprocess)
                metrics |= validate(fit.net, val_loaders, runtime, step, hits)
                run.measured(main_accuracy(metrics, "val_"))
            # Write and save.
            weight = {"lambda": lambdas[epoch]} if teacher else {}
            run.write(epoch, metrics | {"lr": rates[epoch][-1]} | weight)
            run.save(epoch, state(epoch + 1))
    runtime.barrier()  # the next generation's teacher is read by every process
    return run.path, run.acc1


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the step."""
    parser = build_parser()
    args = parser.parse_args(argv)
    output = OutputOptions.of(args, resume="auto")  # --resume names a teacher in this step
    runtime = opening.start(RunOptions.of(args), output)
    # The first teacher, and what its checkpoint says of images and classes.
    teacher: Path | None = Path(args.resume)
    if args.resume in ("", "auto"):
        place = (output, DataOptions.of(args).label, args.arch or options.ARCH)
        teacher = generation_path(*place, args.start_gen - 1) if args.start_gen else None
    model, state = read_classifier(teacher, args.arch) if teacher else (None, {})
    data = DataOptions.of(args, state.get("data", {}))
    images, val_images = opening.both_splits(
        data, opening.known_images(data, state, runtime) if teacher else None
    )
    record = state.get("model") or classifier_record(args.arch or options.ARCH, len(images.classes))
    check_outputs(record["num_classes"], images, teacher)
    # Students of another architecture are built anew; otherwise they are built as the teacher was.
    if args.student_arch:
        model, record = None, classifier_record(args.student_arch, len(images.classes))
    # What the generations go on from: refuse another run's files, and files of other images.
    settings = options.settings(args, data)
    series = Series(SeriesOptions.of(args), data, TrainingOptions.of(args), output, settings)
    check_series(series, record["arch"], teacher, runtime)
    paths = [series.path(record["arch"], generation) for generation in series.options.numbers]
    opening.bind(data, runtime, images, val_images, outputs=paths, restart=output.restart)
    # Prove now that such a net can be read again, and that a batch can be trained on.
    model = model or build(**record, image_size=data.image_size)
    check_reloads(model, record, data.image_size)
    check_logits(model, record["arch"], len(images.classes), data.image_size)
    opening.check_last_batch(data, model, images, runtime)
    opening.check_smoothing(series.training, images)
    # Nothing is left to refuse: decode the images.
    images, val_images = (opening.decoded(data, split, runtime) for split in (images, val_images))
    # Train one generation after the other; each is the next one's teacher.
    first = teacher or paths[0]
    lines = [f"{'generation':>10}{'accuracy, %':>13}  checkpoint"]
    for generation in series.options.numbers:
        teacher, acc1 = train_generation(
            generation, teacher, record, images, val_images, series, runtime
        )
        lines.append(f"{generation:>10}{acc1:>13.2f}  {teacher}")
    runtime.say(
        "\n".join([*lines, f"saved these, and the log of each in {runs.log_folder(output.out)}"])
    )
    # The command that follows compares the first net of the series with its last one.
    named = options.arch_words(("--arch1", "--arch2"), args.arch, args.student_arch or args.arch)
    layer = ["--layers", "stages"] if args.student_arch else usual_layer(model)
    nets = ("--resume1", first, "--resume2", teacher, *named, *layer)
    same = parser.again((*options.IMAGES, *options.MACHINE, "out"), args, data)
    runtime.say_next("ConvOutput.py", *nets, "--t_or_v", "both", *same)


if __name__ == "__main__":
    main()
