"""Distil a network's classes and its branches' classes and rotations (HSAKD; Yang et al. 2021, online 2022).

The commands are the authors' scripts with their options, files and logs: train_baseline_cifar, train_teacher_cifar,
train_student_cifar and train_student_few_shot (student --few_ratio), train_online_kd_cifar, eval_rep (probe); those for
ImageNet are the same with --dataset imagenet. A run writes {checkpoint_dir}/{run}/{arch}.pth.tar and …_best.pth.tar,
{out}/result/{run}.txt and {out}/logs/{run}. Its last epoch is its result; the best one stands beside it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from models import hsakd_nets
from models.classifiers import classifier_record
from models.small import names
from models.small.hsakd_files import check_own, documented_file, fill_from_file, to_authors_state
from utils import checkpoint, hsakd_options, opening, options, runs
from utils.data.datasets import dataset_spec
from utils.data.images import ImageData
from utils.distillation import hsakd, hsakd_log, hsakd_steps
from utils.files import check_unclaimed, check_writable, sha256
from utils.parser import Namespace, Parser
from utils.runtime import Runtime, command
from utils.training import resume, schedules
from utils.training.classification import classify, validate
from utils.training.engine import Fit, Step, train_one_epoch
from utils.training.metrics import accuracies_percent


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


METHODS = {
    "baseline": Method(hsakd_nets.baseline, ("arch",), classify, classify, "top1_prec"),
    "teacher": Method(
        hsakd_nets.teacher, ("arch", "pretrained_backbone"),
        partial(hsakd_steps.teach, accuracies=accuracies_percent),
        partial(hsakd_steps.measure, accuracies=accuracies_percent), "ss_aux",
    ),
    "student": Method(
        hsakd_nets.student, ("arch", "tarch", "tcheckpoint"),
        partial(hsakd_steps.distil, accuracies=accuracies_percent),
        partial(hsakd_steps.measure, accuracies=accuracies_percent), "top1_prec",
    ),
    "online": Method(
        hsakd_nets.online, ("arch",),
        partial(hsakd_steps.teach_each_other, accuracies=accuracies_percent),
        partial(hsakd_steps.measure_both, accuracies=accuracies_percent), "top1_prec",
    ),
    "probe": Method(hsakd_nets.probe, ("arch", "s_path"), classify, classify, "top1_prec"),
}  # fmt: skip


def build_parser() -> Parser:
    """Declare the commands and their options."""
    parser = Parser(__doc__, hsakd_options.EXAMPLES["student"])
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for name, what in hsakd_options.COMMANDS.items():
        example = hsakd_options.EXAMPLES[name]
        command_parser = commands.add_parser(name, description=what, help=what, example=example)
        nets = ", ".join(names.ONLINE_PAIRS) if name == "online" else names.TAKEN
        hsakd_options.add_options(command_parser, name, nets)
    return parser


def open_loaders(
    args: Namespace, train_images: ImageData, runtime: Runtime
) -> tuple[opening.Loader, dict[str, opening.Loader]]:
    """Make the loader of the images that are trained on and, with --select val, the one of those held out of them."""
    share, ratio = args.hold_out if args.select == "val" else 0, getattr(args, "few_ratio", None) or 1
    kept, held = hsakd.split_training(train_images.paths, train_images.targets.numpy(), ratio, share)
    unseen = train_images = opening.decoded(args, train_images, runtime)
    if train_images.augments_while_decoding:
        in_order = Namespace(**vars(args) | {"val_path": str(train_images.root)})
        unseen = opening.images(in_order, "val", {"normalisation": train_images.normalisation})
    loader = opening.image_loader(args, train_images, runtime, shuffle=True, part=torch.from_numpy(kept))
    return loader, {"val": opening.image_loader(args, unseen, runtime, part=torch.from_numpy(held))} if share else {}


def evaluate(net: nn.Module, loaders: opening.Loaders, runtime: Runtime, step: Step) -> dict[str, float]:
    """Evaluate on the test images and on held-out ones, as far as there are: `test_{metric}`, `val_{metric}`."""
    found = {split: validate(net, {"": loader}, runtime, step) for split, loader in loaders.items()}
    return {name.replace("val_", f"{split}_", 1): value for split in found for name, value in found[split].items()}


def find_own(
    args: Namespace, own: Path, best_path: Path, settings: Mapping[str, Any]
) -> tuple[Path | None, checkpoint.State]:
    """Find the checkpoint that this run goes on from, if it does, and read it."""
    if args.evaluate:
        return None, {}
    if not args.restart:
        check_own(own)
    check_unclaimed(runs.log_folder(args.out, own.parent.name))
    extendable = args.lr_type == "multistep"
    resumed = resume.find(args.resume, own, settings, restart=args.restart, extendable=extendable)
    state = checkpoint.load(resumed) if resumed else {}
    if resumed != own or not best_path.exists():
        state.pop("best", None)  # the best of another run is in no file of this one
    return resumed, state


def rates_of_epochs(args: Namespace) -> list[float]:
    """Give the learning rate of every epoch after the warm-up."""
    if args.lr_type == "SGDR":
        return schedules.warm_restarts(args.lr, args.epochs, args.sgdr_t)
    return schedules.multistep(args.lr, args.epochs, args.milestones)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the step."""
    parser = build_parser()
    args = parser.parse_args(argv)
    hsakd_options.fill(parser, args)
    args.augment = "none" if dataset_spec(args.dataset).train_view == "random_crop" else "zero4"
    check_writable(args.checkpoint_dir)
    runtime = opening.start(args)
    if args.launcher:
        runtime.say("several processes are started by torchrun: torchrun --nproc_per_node GPUS HSAKD.py …")
    method, name = METHODS[args.command], hsakd_options.run_name(args)
    own = Path(args.checkpoint_dir, name, f"{args.arch}.pth.tar")
    best_path, text_path = own.with_name(f"{args.arch}_best.pth.tar"), Path(args.out, "result", f"{name}.txt")
    vars(args).update({option: str(documented_file(path)) for option, path in hsakd_options.files(args).items()})
    hashes = {option: sha256(path) for option, path in hsakd_options.files(args).items()}
    settings = options.settings(args, but=hsakd_options.NOT_RECORDED, **hashes)
    resumed, state = find_own(args, own, best_path, settings)
    train_images, test_images = opening.both_splits(args, state.get("data"))
    opening.bind(args, runtime, train_images, test_images, own=() if args.evaluate else own)
    classes = len(train_images.classes)
    model, teacher = method.networks(classes, **{option: getattr(args, option) for option in method.options})
    by_name: dict[str, Any] = {"tau": args.kd_T} if "kd_T" in args else {}
    if teacher is not None:
        hsakd.check_branches(len(model.heads), len(teacher.heads))  # type: ignore[arg-type]
        by_name["teacher"] = runtime.parallel(teacher)
    preprocess = train_images.preprocessing(args.seed)
    measure = partial(method.measure, preprocess=preprocess)
    if resumed or args.evaluate:
        fill_from_file(model, resumed or own)
    net = runtime.parallel(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, args.lr, 0.9, weight_decay=args.weight_decay, nesterov=args.nesterov)
    fit = Fit(net, model, optimizer, runtime.grad_scaler(), runtime, args.print_freq)
    start_epoch = fit.restore(state, resumed) + 1 if resumed else 0  # the files hold an epoch's number, from 0
    loaders = {"test": opening.image_loader(args, opening.decoded(args, test_images, runtime), runtime)}
    if args.evaluate:
        for path in [own, best_path] if best_path.exists() else [own]:
            fill_from_file(model, path)
            runtime.say(f"{path}: {runs.describe(evaluate(net, loaders, runtime, measure))}")
        return

    last, best, taught = (state.get(key, {}) for key in ("last", "best", "teacher"))
    if teacher is not None and not resumed:
        taught = evaluate(by_name["teacher"], loaders, runtime, measure)
    loader, held_out = open_loaders(args, train_images, runtime)
    trained_on = len(loader.dataset)  # type: ignore[arg-type]
    runtime.say(f"{name}: {trained_on:,} training and {len(test_images):,} test images, {classes} classes")
    facts = {
        "model": classifier_record(hsakd_nets.bare_arch(model), classes), "settings": settings,
        "data": opening.data_record(args, train_images), "history": resume.history(state, settings),
        "versions": resume.VERSIONS, "teacher": taught,
        "images": opening.images_record(train_images, test_images),
    }  # fmt: skip
    folder = runs.log_folder(args.out, name)
    with runs.RunLog(folder, args.epochs, start_epoch=start_epoch, active=runtime.is_main) as log:
        for epoch, rate in list(enumerate(rates_of_epochs(args)))[start_epoch:]:
            schedules.set_learning_rate(optimizer, rate)
            step = partial(method.step, preprocess=partial(preprocess, epoch=epoch), **by_name)
            with schedules.each_step(optimizer, schedules.warm_up(args.lr, epoch, args.warmup_epoch, len(loader))):
                metrics = train_one_epoch(fit, loader, step, epoch)
            measured = evaluate(net, loaders | held_out, runtime, measure)
            log.write(epoch, metrics | measured | {"lr": optimizer.param_groups[0]["lr"]})
            last = {"epoch": epoch, **measured}
            best = hsakd_log.best_of(best, last, method.decides)
            if runtime.is_main:
                state = facts | {
                    "net": to_authors_state(model), "acc": hsakd_log.decided(last, args.select, method.decides) / 100,
                    "epoch": epoch, "last": last, "best": best, "optimizer": optimizer.state_dict(),
                    "scaler": fit.scaler.state_dict(),
                }  # fmt: skip
                checkpoint.save(own, state)
                log.saved(own, epoch + 1)
                if best[args.select] is last:
                    checkpoint.save(best_path, state)
                hsakd_log.write(text_path, settings, str(runtime.device), runs.read_metrics(log.path), taught)
    runtime.say(hsakd_log.closing_words(last, best, probe=args.command == "probe"))
    runtime.say(f"saved {own}, {best_path.name} beside it, and {text_path}; the log is {log.path}")
    if following := hsakd_options.following(args, own, hsakd_nets.bare_arch(model)):
        runtime.say_next("HSAKD.py", *following)


if __name__ == "__main__":
    main()
