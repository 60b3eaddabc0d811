"""Distil a network with self-supervised branches (HSAKD; Yang et al. 2021, online 2022).

Each branch learns the joint distribution of class and rotation.

The commands are the authors' scripts with their options, files and logs: train_baseline_cifar,
train_teacher_cifar, train_student_cifar and train_student_few_shot (student --few_ratio),
train_online_kd_cifar, eval_rep (probe); those for ImageNet are the same with --dataset imagenet. A
run writes {checkpoint_dir}/{run}/{arch}.pth.tar and …_best.pth.tar, {out}/result/{run}.txt and
{out}/logs/{run}. Its last epoch is its result; the best one stands beside it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from distillation import hsakd_options
from utils.command import answer_early, command
from utils.option_groups import DataOptions, Group, OutputOptions, RunOptions, TrainingOptions
from utils.parser import Parser


def build_parser() -> Parser:
    """Declare the commands and their options."""
    parser = Parser(__doc__, hsakd_options.EXAMPLES["student"], check=hsakd_options.fill)
    commands = parser.add_subparsers(
        title="commands", dest="command", required=True, metavar="COMMAND"
    )
    for name, what in hsakd_options.COMMANDS.items():
        example = hsakd_options.EXAMPLES[name]
        command_parser = commands.add_parser(name, description=what, help=what, example=example)
        hsakd_options.add_options(command_parser, name)
    return parser


# Help, a wrong option and a missing file are answered before PyTorch is loaded, which takes seconds.
if __name__ == "__main__":
    answer_early(build_parser())

import torch
from torch import nn

from distillation import hsakd, hsakd_log, hsakd_nets, hsakd_steps
from models.classifiers import classifier_record
from models.small.hsakd_files import check_own, fill_from_file, to_authors_state
from utils import checkpoint, opening, options, runs
from utils.data.datasets import dataset_spec
from utils.data.images import ImageData
from utils.files import check_writable, sha256
from utils.runtime import Runtime
from utils.training import resume, schedules
from utils.training.classification import classify, validate
from utils.training.engine import Fit, Step, train_one_epoch
from utils.training.metrics import accuracies_percent
from utils.training.run import Run


@dataclass(frozen=True)
class RecipeOptions(Group):
    """How a command trains beyond `TrainingOptions`, and which epoch it calls best.

    Attributes:
        lr: the learning rate.
        nesterov: of SGD.
        lr_type: "multistep" or "SGDR".
        milestones: of "multistep", epochs at which the rate falls to a tenth.
        sgdr_t: of "SGDR", epochs of the first cycle.
        warmup_epoch: epochs of a linear warm-up.
        select: what the best epoch is chosen on, "test" or "val".
        hold_out: of "val", the share of the training images that is held out.
        few_ratio: the share of each class that is trained on; None: all.
    """

    lr: float
    nesterov: bool
    lr_type: str
    milestones: list[int]
    warmup_epoch: int
    select: str
    hold_out: float
    sgdr_t: int = 300
    few_ratio: float | None = None

    def rates(self, epochs: int) -> list[float]:
        """Give the learning rate of every epoch after the warm-up."""
        if self.lr_type == "SGDR":
            return schedules.warm_restarts(self.lr, epochs, self.sgdr_t)
        return schedules.multistep(self.lr, epochs, self.milestones)


class Method(NamedTuple):
    """What a command does.

    Attributes:
        networks: makes what is trained, and its teacher, of the number of classes and some options.
        options: which.
        step, measure: a step of training, one of evaluation.
        decides: the kind of accuracy whose highest makes the best epoch.
    """

    networks: Callable[..., hsakd_nets.Networks]
    options: tuple[str, ...]
    step: Step
    measure: Step
    decides: str


FIRST_EPOCH = 0  # the authors' files hold an epoch's number, counted from 0
METHODS = {
    "baseline": Method(hsakd_nets.baseline, ("arch",), classify, classify, "top1_prec"),
    "teacher": Method(
        hsakd_nets.teacher,
        ("arch", "pretrained_backbone"),
        partial(hsakd_steps.teach, accuracies=accuracies_percent),
        partial(hsakd_steps.measure, accuracies=accuracies_percent),
        "ss_aux",
    ),
    "student": Method(
        hsakd_nets.student,
        ("arch", "tarch", "tcheckpoint"),
        partial(hsakd_steps.distil, accuracies=accuracies_percent),
        partial(hsakd_steps.measure, accuracies=accuracies_percent),
        "top1_prec",
    ),
    "online": Method(
        hsakd_nets.online,
        ("arch",),
        partial(hsakd_steps.teach_each_other, accuracies=accuracies_percent),
        partial(hsakd_steps.measure_both, accuracies=accuracies_percent),
        "top1_prec",
    ),
    "probe": Method(hsakd_nets.probe, ("arch", "s_path"), classify, classify, "top1_prec"),
}


def open_networks(
    method: Method, parsed: Mapping[str, Any], classes: int, runtime: Runtime
) -> tuple[nn.Module, dict[str, Any]]:
    """Make what is trained, and what its steps take by name.

    The names are `teacher`, a network, and `tau`, a temperature; `parsed` has all options, of
    which each method needs others.
    """
    model, teacher = method.networks(classes, **{name: parsed[name] for name in method.options})
    by_name: dict[str, Any] = {"tau": parsed["kd_T"]} if "kd_T" in parsed else {}
    if teacher is not None:
        hsakd.check_branches(len(model.heads), len(teacher.heads))  # type: ignore[arg-type]
        by_name["teacher"] = runtime.parallel(teacher)
    return model, by_name


def open_fit(
    training: TrainingOptions, model: nn.Module, runtime: Runtime, *, nesterov: bool
) -> Fit:
    """Move a model to its devices and give it the authors' optimiser over what is trained of it."""
    net = runtime.parallel(model)
    optimizer = torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        training.lr,
        training.momentum,
        weight_decay=training.weight_decay,
        nesterov=nesterov,
    )
    return Fit(net, model, optimizer, runtime.grad_scaler(), runtime, training.print_freq)


def open_loaders(
    data: DataOptions,
    recipe: RecipeOptions,
    train_images: ImageData,
    test_images: ImageData,
    runtime: Runtime,
) -> tuple[opening.Loader, opening.Loaders]:
    """Decode the images and make their loaders.

    Returns:
        That of the images that are trained on; and by "test" that of the test images and, with
        --select val, by "val" that of training images that are held out.
    """
    tested = opening.image_loader(data, opening.decoded(data, test_images, runtime), runtime)
    share = recipe.hold_out if recipe.select == "val" else 0
    labels = train_images.targets.numpy()
    kept, aside = map(
        torch.from_numpy,
        hsakd.split_training(train_images.paths, labels, recipe.few_ratio or 1, share),
    )
    # Held-out images are never augmented: where decoding augments, they are decoded in another way.
    unseen = train_images = opening.decoded(data, train_images, runtime)
    if train_images.augments_while_decoding:
        in_order = replace(data, val_path=str(train_images.root))
        unseen = opening.images(in_order, "val", {"normalisation": train_images.normalisation})
    loader = opening.image_loader(data, train_images, runtime, shuffle=True, numbers=kept)
    held_out = {"val": opening.image_loader(data, unseen, runtime, numbers=aside)} if share else {}
    return loader, {"test": tested} | held_out


def train(
    fit: Fit,
    loader: opening.Loader,
    step: Step,
    epoch: int,
    recipe: RecipeOptions,
    epochs: int,
) -> dict[str, float]:
    """Train one epoch of `epochs`; in a warm-up every step has a rate of its own."""
    schedules.set_learning_rate(fit.optimizer, recipe.rates(epochs)[epoch])
    rising = schedules.warm_up(recipe.lr, epoch, recipe.warmup_epoch, len(loader))
    with schedules.each_step(fit.optimizer, rising, fit.midway.taken(epoch)):
        return train_one_epoch(fit, loader, step, epoch)


def evaluate(
    net: nn.Module, loaders: opening.Loaders, runtime: Runtime, step: Step
) -> dict[str, float]:
    """Evaluate on the test images, and on held-out ones where there are some.

    The metrics are called `test_{metric}` and `val_{metric}`.
    """
    metrics: dict[str, float] = {}
    for split, loader in loaders.items():
        of_split = validate(net, {"": loader}, runtime, step)
        metrics |= {name.replace("val_", f"{split}_", 1): of_split[name] for name in of_split}
    return metrics


def evaluate_files(
    method: Method, parsed: Mapping[str, Any], data: DataOptions, path: Path, runtime: Runtime
) -> None:
    """Measure what a run saved, its last epoch and its best one, on the test images."""
    train_images, test_images = opening.both_splits(data)
    model, _ = open_networks(method, parsed, len(train_images.classes), runtime)
    fill_from_file(model, path)  # which may be refused, before images are decoded
    net = runtime.parallel(model)
    test_images = opening.decoded(data, test_images, runtime)
    loaders = {"test": opening.image_loader(data, test_images, runtime)}
    measure = partial(method.measure, preprocess=train_images.preprocessing(runtime.seed))
    # The last epoch's weights first, then those of the best one.
    for file in filter(Path.exists, (path, best_path(path))):
        fill_from_file(model, file)
        runtime.say(f"{file}: {runs.describe(evaluate(net, loaders, runtime, measure))}")


def best_path(path: Path) -> Path:
    """Say where the best epoch of a run is saved, whose last one is at `path`."""
    return path.with_name(path.name.replace(".pth.tar", "_best.pth.tar"))


def open_run(
    path: Path,
    settings: Mapping[str, Any],
    files: Mapping[str, str],
    output: OutputOptions,
    training: TrainingOptions,
    runtime: Runtime,
) -> Run:
    """Find what the run goes on from; a file of the authors' is left alone.

    `files`, by option, are recorded by their contents.
    """
    resume.put_right(output.resume, path, restart=output.restart, first_epoch=FIRST_EPOCH)
    if not output.restart:
        check_own(path)
    return opening.run(
        output,
        training,
        runtime,
        path,
        {**settings, **{option: sha256(file) for option, file in files.items()}},
        log_folder=runs.log_folder(output.out, path.parent.name),
        best_path=best_path(path),
        extendable=settings["lr_type"] == "multistep",
        first_epoch=FIRST_EPOCH,
    )


def authors_state(
    fit: Fit, last: hsakd_log.Row, best: dict[str, hsakd_log.Row], select: str, decides: str
) -> dict[str, Any]:
    """Give what a checkpoint says after an epoch, by the authors' names.

    Their accuracy is a share, ours a percentage.

    Args:
        fit: the network and its optimiser.
        last: the last epoch's row; {}: there is none yet.
        best: the best epoch's rows.
        select: what the best epoch is chosen on, "test" or "val".
        decides: the kind of accuracy that decides.
    """
    percent = hsakd_log.decided(last, select, decides) if last else 0.0
    fit.check_finite(int(last.get("epoch", -1)) + 1)
    return {
        "net": to_authors_state(fit.model),
        "acc": percent / 100,
        "epoch": last.get("epoch", -1),
        "last": last,
        "best": best,
        "optimizer": fit.optimizer.state_dict(),
        "scaler": fit.scaler.state_dict(),
    }


def check_files(files: Mapping[str, str]) -> None:
    """Refuse damaged files that options name, before images are hashed."""
    for file in files.values():
        checkpoint.load(file, mmap=True)


def text_log(out: str, run: Run) -> Path:
    """Say where the text log is, as the authors' scripts write it; the run's folder names it."""
    return Path(out, "result", f"{run.path.parent.name}.txt")


def write_text_log(out: str, run: Run, device: str, taught: dict[str, float]) -> None:
    """Write the authors' text log anew, from all epochs so far; `taught` is of the teacher."""
    epochs = runs.read_metrics(run.log_path, ("Loss", "lr", "seconds"))
    hsakd_log.write(text_log(out, run), run.settings, device, epochs, taught)


def say_saved(out: str, run: Run, following: Sequence[str], runtime: Runtime) -> None:
    """Say what was saved, and which of the authors' commands follows, if one does."""
    runtime.say(
        f"saved {run.path}, {best_path(run.path).name} beside it, and {text_log(out, run)}; the"
        f" log is {run.log_path}"
    )
    if following:
        runtime.say_next("HSAKD.py", *following)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the step."""
    args = build_parser().parse_args(argv)
    # The authors pad CIFAR by 4 zeros before they crop; larger images are cropped at random.
    args.augment = "none" if dataset_spec(args.dataset).train_view == "random_crop" else "zero4"
    check_writable(args.checkpoint_dir)
    output, recipe = OutputOptions.of(args), RecipeOptions.of(args)
    training = TrainingOptions.of(args, optim="SGD", momentum=0.9)
    runtime = opening.start(RunOptions.of(args), output)
    if args.launcher:
        runtime.say(
            "several processes are started by torchrun: torchrun --nproc_per_node GPUS HSAKD.py …"
        )
    # Where the authors' scripts write, and the files that the options name.
    method = METHODS[args.command]
    path = Path(args.checkpoint_dir, hsakd_options.run_name(args), f"{args.arch}.pth.tar")
    hsakd_options.fill_files(args)
    check_files(hsakd_options.files(args))
    data = DataOptions.of(args)
    if args.evaluate:
        evaluate_files(method, vars(args), data, path, runtime)
        return

    # What the run goes on from; another run's checkpoint in its place is refused before an image is
    # read.
    run = open_run(
        path, options.settings(args), hsakd_options.files(args), output, training, runtime
    )
    train_images, test_images = opening.both_splits(data, run.state.get("data"))
    opening.bind(data, runtime, train_images, test_images, outputs=path, restart=output.restart)

    # The network, and its teacher if it has one.
    model, by_name = open_networks(method, vars(args), len(train_images.classes), runtime)
    if run.resumed:
        fill_from_file(model, run.resumed)
    fit = open_fit(training, model, runtime, nesterov=recipe.nesterov)
    run.restore(fit)

    # The images, and how well the teacher does on those of the test.
    loader, evaluated = open_loaders(data, recipe, train_images, test_images, runtime)
    preprocess = train_images.preprocessing(runtime.seed)
    measure = partial(method.measure, preprocess=preprocess)
    facts = {
        "model": classifier_record(hsakd_nets.bare_arch(model), len(train_images.classes)),
        "data": opening.data_record(data, train_images),
        "images": opening.images_record(train_images, test_images),
        "teacher": run.state.get("teacher", {}),
    }
    if "teacher" in by_name and not run.resumed:
        facts["teacher"] = evaluate(
            by_name["teacher"], {"test": evaluated["test"]}, runtime, measure
        )
    runtime.say(
        f"{path.parent.name}: {len(loader.dataset):,} training and"  # type: ignore[arg-type]
        f" {len(test_images):,} test images, {len(train_images.classes)} classes"
    )

    # The rows of the last epoch and of the best one, which the closing words say.
    last = run.state.get("last", {})
    best = run.state.get("best", {}) if run.has_best else {}
    saved = last, best

    def state(_: int) -> checkpoint.State:
        """Give what a run goes on from after the last epoch that is written."""
        return facts | authors_state(fit, *saved, recipe.select, method.decides)

    with run.keeping(fit, state):
        for epoch in run.epochs():
            # Train.
            metrics = train(
                fit,
                loader,
                partial(method.step, preprocess=partial(preprocess, epoch=epoch), **by_name),
                epoch,
                recipe,
                training.epochs,
            )
            # Evaluate.
            measured = evaluate(fit.net, evaluated, runtime, measure)
            last = {"epoch": epoch, **measured}
            best = hsakd_log.best_of(best, last, method.decides)
            run.is_best = best[recipe.select] is last
            # Write and save, as the authors' scripts do; the checkpoint last, which says that all
            # of the epoch is written.
            run.write(epoch, metrics | measured | {"lr": fit.optimizer.param_groups[0]["lr"]})
            if runtime.is_main:
                write_text_log(output.out, run, str(runtime.device), facts["teacher"])
            saved = last, best
            run.save(epoch, state(epoch + 1))

    runtime.say(hsakd_log.closing_words(last, best, probe=args.command == "probe"))
    say_saved(
        output.out,
        run,
        hsakd_options.following(args, run.path, hsakd_nets.bare_arch(model)),
        runtime,
    )


if __name__ == "__main__":
    main()
