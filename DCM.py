"""Train two networks that teach each other across layers (DCM, Yao and Sun 2020), from scratch.

Both have two heads on earlier stages. Every head learns from the labels and from every head of the
other network, and one backward pass moves both. --method dml: the final layers alone teach each
other (Zhang et al. 2018); alone: none does. --save receives checkpoint.pth.tar, which a run goes on
from; net1.pth.tar and net2.pth.tar, classifiers without heads for the other steps; and what the
authors' script writes, model.pt7 (network 1) and log.txt.
"""

import time
from argparse import SUPPRESS
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from distillation.choices import METHODS, NETS
from utils import options
from utils.command import answer_early, command
from utils.option_groups import DataOptions, Group, OutputOptions, RunOptions, TrainingOptions
from utils.parser import (
    MOST_PROCESSES,
    Namespace,
    Parser,
    list_of,
    output_folder,
    plain_name,
    real,
    some_path,
    whole,
)


def build_parser() -> Parser:
    """Declare this step's options."""
    parser = Parser(
        __doc__,
        "python DCM.py --save ./logs/wrn-28-10 --depth 28 --width 10 --dataroot data",
        check=check_options,
    )
    group = parser.add_argument_group("networks")
    group.add_argument(
        "--depth",
        neutral=True,
        type=whole(1),
        default=28,
        help="of the WRN that a network is where none is named",
    )
    group.add_argument(
        "--width",
        neutral=True,
        type=real(above=0),
        default=10,
        help="of that WRN, may be fractional",
    )
    group.add_argument(
        "--net1", type=plain_name, metavar="ARCH", help=f"one of {NETS}; default: wrn_DEPTH_WIDTH"
    )
    group.add_argument(
        "--net2", type=plain_name, metavar="ARCH", help="the same of the other network"
    )
    group.add_argument("--method", choices=METHODS, default="dcm", help="who learns from whom")
    group.add_argument(
        "--batch_statistics",
        type=int,
        choices=[1, 2],
        nargs="+",
        default=[],
        metavar="N",
        help="test these networks (1, 2) in training mode, as the authors do with MobileNet",
    )
    group = parser.add_argument_group("training")
    group.add_argument("--lr", type=real(), default=0.1, help="first learning rate")
    group.add_argument(
        "--wd",
        "--weight_decay",
        dest="weight_decay",
        type=real(),
        default=5e-4,
        help="weight decay",
    )
    group.add_argument("--epochs", type=whole(1), default=200, help="epochs in all")
    group.add_argument(
        "--epoch_step",
        type=list_of(whole(1), empty=True),
        default=[60, 120, 160],
        metavar="[60,120,160]",
        help=(
            "epochs, counted from 1, before which the learning rate falls and the optimiser begins"
            " anew"
        ),
    )
    group.add_argument("--lr_decay_ratio", type=real(above=0), default=0.2, help="of such a fall")
    group.add_argument(
        "--keep_momentum", action="store_true", help="let only the learning rate fall there"
    )
    group.add_argument(
        "--save_epoch", neutral=True, type=whole(1), default=1, help="epochs between checkpoints"
    )
    group.add_argument(
        "-p",
        "--print_freq",
        neutral=True,
        type=whole(1),
        default=10,
        help="batches between readings of the loss",
    )
    options.add_data_options(parser, batch_size=128)
    options.add_resume_options(parser)
    options.add_run_options(parser)
    group = parser.add_argument_group("the authors' names")
    group.add_argument(
        "--save",
        neutral=True,
        dest="out",
        type=output_folder,
        required=True,
        metavar="FOLDER",
        help="what is written",
    )
    group.add_argument(
        "--dataroot", dest="data_root", type=some_path, default=SUPPRESS, help="--data_root"
    )
    group.add_argument(
        "--nthread",
        dest="workers",
        type=whole(0, MOST_PROCESSES),
        default=SUPPRESS,
        help="--workers",
    )
    group.add_argument(
        "--gpu_id", dest="device_ids", type=list_of(whole(0)), default=SUPPRESS, help="--device_ids"
    )
    group.add_argument(
        "--ngpu", neutral=True, type=whole(1), help="only the first so many of --gpu_id"
    )
    group.add_argument(
        "--dtype",
        neutral=True,
        choices=["float"],
        default="float",
        help="of images; mixed precision: --amp",
    )
    group.add_argument("--note", neutral=True, default="", help="a remark for log.txt")
    options.add_ignored_options(parser, "--groups", "--cuda")
    parser.set_defaults(
        dataset="CIFAR100",
        image_size=32,
        augment="reflect4",
        normalisation="dcm",
        seed=1,
        optim="SGD",
        momentum=0.9,
    )
    return parser


@dataclass(frozen=True)
class CoupleOptions(Group):
    """Both networks, how they teach each other, and how the rate falls.

    Attributes:
        net1, net2: their architectures.
        method: who learns from whom.
        batch_statistics: the networks, 1 and 2, that are tested in training mode.
        lr: the first learning rate.
        epoch_step: epochs, counted from 1, before which the rate falls.
        lr_decay_ratio: of such a fall.
        keep_momentum: let only the rate fall there; else the optimiser begins anew, too.
    """

    net1: str
    net2: str
    method: str
    batch_statistics: list[int]
    lr: float
    epoch_step: list[int]
    lr_decay_ratio: float
    keep_momentum: bool

    def rates(self, epochs: int) -> list[float]:
        """Give the learning rate of every epoch."""
        falls = [sum(first <= epoch for first in self.epoch_step) for epoch in range(1, epochs + 1)]
        return [self.lr * self.lr_decay_ratio**count for count in falls]


def check_options(parser: Parser, args: Namespace) -> None:
    """Refuse options that contradict each other, and fill in the GPUs that the authors' mean."""
    if args.net1 and args.net2:
        parser.refuse_without_effect(args, ["depth", "width"], "beside --net1 and --net2")
    if args.ngpu:
        args.device_ids = (args.device_ids or list(range(args.ngpu)))[: args.ngpu]
        if len(args.device_ids) < args.ngpu:
            parser.error(
                f"--ngpu {args.ngpu} needs as many GPUs in --gpu_id, which has"
                f" {len(args.device_ids)}"
            )


# Help, a wrong option and a missing file are answered before PyTorch is loaded, which takes seconds.
if __name__ == "__main__":
    answer_early(build_parser())

from torch import Tensor, nn

from distillation import dcm_log
from distillation.dcm import mutual_terms
from models.classifiers import classifier_record
from models.small.author_keys import authors_state
from models.small.couple import Couple, build_couple
from models.small.names import bare_name
from utils import checkpoint, opening
from utils.errors import InputError
from utils.runtime import Runtime
from utils.training.classification import validate
from utils.training.engine import Fit, train_one_epoch
from utils.training.metrics import accuracies_percent
from utils.training.run import Run
from utils.training.schedules import set_learning_rate

CHECKPOINT, AUTHORS_LOG = "checkpoint.pth.tar", "log.txt"
# net1 and net2 say what the first two mean
AUTHORS_NAMES = {
    "save": "out",
    "dataroot": "data_root",
    "nthread": "workers",
    "gpu_id": "device_ids",
}


def fill(args: Namespace) -> None:
    """Name the networks that the authors' options mean."""
    args.net1, args.net2 = (
        bare_name(net or f"wrn_{args.depth}_{args.width:g}") for net in (args.net1, args.net2)
    )


def find_images(
    data: DataOptions, recorded: Mapping[str, Any] | None
) -> tuple[opening.ImageData, opening.ImageData]:
    """List the images of both splits; `recorded` says which ones a resumed run saw.

    The authors' --dataroot was the official archive, which PrepareData.py makes images of.
    """
    root = Path(data.data_root)
    # The names that the official archives of CIFAR-10 and CIFAR-100 unpack to.
    archives = [
        place for pattern in ("cifar-10*", "meta", "batches.meta") for place in root.glob(pattern)
    ]
    if archives and not data.train_path and not (root / data.dataset).exists():
        raise InputError(
            f"{root} holds the official archive; make its images first: python PrepareData.py"
            f" {data.dataset} --src {root} --out {root}"
        )
    images, test_images = opening.both_splits(data, recorded)
    if images.targets.ndim == 2:
        raise InputError(
            f"{data.dataset} has several labels an image, and DCM's losses are for one; take"
            " another one"
        )
    return images, test_images


def teach(
    net: nn.Module,
    pixels: Tensor,
    targets: Tensor,
    indices: Tensor,
    *,
    preprocess: Callable[[Tensor, Tensor], Tensor],
    method: str,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Take both networks' common loss of a batch, and every head's accuracy.

    DCM's loss has 24 terms, all of weight 1.
    """
    # Each network gives its final logits (N, C) and those of its heads.
    first, second = net(preprocess(pixels, indices))
    terms = mutual_terms(first, second, targets, method)
    metrics = {"CE": terms.ce.sum(), "KL": terms.kl.sum()}
    for number, (final, heads) in enumerate((first, second), start=1):
        for place, logits in {
            "": final,
            **{f"ep{ep}_": head for ep, head in enumerate(heads, start=1)},
        }.items():
            metrics[f"net{number}_{place}top1_prec"] = accuracies_percent(logits, targets)[
                "top1_prec"
            ]
    return terms.total, metrics


def write_authors_log(
    folder: Path,
    parsed: Mapping[str, Any],
    couple: Couple,
    metrics: dict[str, float],
    **facts: float,
) -> None:
    """Add an epoch to log.txt: all options as they were parsed, and the numbers.

    Options and numbers have the authors' names there.
    """
    named = {**parsed, **{theirs: parsed[ours] for theirs, ours in AUTHORS_NAMES.items()}}
    n_parameters = sum(parameter.numel() for parameter in couple.parameters())
    stats = dcm_log.stats(named, metrics, n_parameters=n_parameters, **facts)
    dcm_log.write(folder / AUTHORS_LOG, stats)


def nets_to_save(
    folder: Path,
    fit: Fit,
    couple: Couple,
    epoch: int,
    metrics: dict[str, float],
    facts: dict[str, Any],
) -> tuple[checkpoint.State, dict[Path, checkpoint.State]]:
    """Give each network as a classifier of the suite, and network 1 as the authors save it.

    Args:
        folder: where the files are made.
        fit: the optimiser of both networks.
        couple: both networks.
        epoch: how many are trained.
        metrics: the accuracies after the last of them.
        facts: what is recorded of the run and of its images.

    Returns:
        What a run goes on from, and by file what is saved together with it.
    """
    accuracies = [metrics[f"val_net{number}_top1_prec"] for number in (1, 2)]
    states = []
    files: dict[Path, checkpoint.State] = {}
    for number, net in enumerate((couple.net1, couple.net2), start=1):
        record = classifier_record(net.backbone.arch, len(facts["data"]["classes"]))
        described = {"arch": record["arch"], "model": record, "acc1": accuracies[number - 1]}
        states.append({**facts, "epoch": epoch, **described})
        weights = net.backbone.state_dict()
        files[folder / f"net{number}.pth.tar"] = {**states[-1], "state_dict": weights}
    # The authors' model.pt7 holds network 1 alone, under their names of its layers.
    authors = authors_state(couple.net1)
    theirs = {"params": authors, "epoch": epoch, "optimizer": fit.optimizer.state_dict()}
    files[folder / "model.pt7"] = theirs
    errors = {f"net{number}": 100 - acc1 for number, acc1 in enumerate(accuracies, start=1)}
    return states[0] | fit.state(epoch, test_error=errors), files


def say_saved(
    run: Run, metrics: Mapping[str, float], again: Sequence[str], runtime: Runtime
) -> None:
    """Say what was saved, and how both networks are compared.

    Args:
        run: that trained them.
        metrics: of the last epoch.
        again: the words by which the next step reads the same images.
        runtime: says a line once.
    """
    folder = run.path.parent
    tested = [f"{metrics[f'val_{net}_top1_prec']:.2f} %" for net in ("net1", "net2")]
    runtime.say(
        f"saved {run.path}, net1.pth.tar, net2.pth.tar, model.pt7, log.txt, metrics.jsonl; "
        f"test accuracy {' and '.join(tested)}"
    )
    nets = ("--resume1", folder / "net1.pth.tar", "--resume2", folder / "net2.pth.tar")
    layers = ("--layers", "stages", "--t_or_v", "both")
    runtime.say_next("ConvOutput.py", *nets, *layers, "--out", folder, *again)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the step."""
    parser = build_parser()
    args = parser.parse_args(argv)
    fill(args)
    teaching = CoupleOptions.of(args)
    training = TrainingOptions.of(args, epoch_step=0)  # the rates are those of `teaching`
    data, output = DataOptions.of(args), OutputOptions.of(args)
    runtime = opening.start(RunOptions.of(args), output)

    # What the run goes on from; another run's checkpoint in its place is refused before an image is
    # read.
    folder = Path(output.out)
    run = opening.run(
        output,
        training,
        runtime,
        folder / CHECKPOINT,
        options.settings(args),
        log_folder=folder,
        elsewhere="--save",
    )
    if runtime.is_main:
        dcm_log.read(folder / AUTHORS_LOG)  # a damaged one is refused before an epoch is trained
    # The images, hashed and not yet decoded.
    images, test_images = find_images(data, run.state.get("data"))
    opening.bind(
        data,
        runtime,
        images,
        test_images,
        outputs=run.path,
        restart=output.restart,
        elsewhere="--save",
    )

    # Both networks, with two heads each where those teach.
    couple = build_couple(
        (teaching.net1, teaching.net2),
        len(images.classes),
        heads=teaching.method == "dcm",
        in_training=teaching.batch_statistics,
        state=run.state.get("state_dict", {}) if run.resumed else None,
    )
    # One optimiser for both networks.
    fit = opening.fit(training, couple, runtime)
    run.restore(fit)
    if run.is_finished:
        runtime.say(f"{run.resumed} is trained for {run.start_epoch} epochs already")
        return
    opening.check_last_batch(data, couple, images, runtime)

    # Nothing is left to refuse: decode the images.
    images = opening.decoded(data, images, runtime)
    test_images = opening.decoded(data, test_images, runtime)
    loader = opening.image_loader(data, images, runtime, shuffle=True)
    test_loaders = opening.validation_loaders(data, test_images, runtime)
    preprocess = images.preprocessing(runtime.seed)
    rates = teaching.rates(training.epochs)
    # What every checkpoint says besides weights and epochs.
    facts = {
        "data": opening.data_record(data, images),
        "images": opening.images_record(images, test_images),
        **run.record,
    }
    runtime.say(
        f"{teaching.method}: {teaching.net1} and {teaching.net2},"
        f" {len(images):,} training images of {len(images.classes)} classes"
    )

    def state(epochs: int) -> checkpoint.State:
        """Give what an interrupted run goes on from."""
        return facts | fit.state(epochs)

    with run.keeping(fit, state):
        for epoch in run.epochs():
            # Train: a fall of the rate begins the optimiser anew, as the authors make a new one.
            set_learning_rate(fit.optimizer, rates[epoch])
            falls = epoch + 1 in teaching.epoch_step and not fit.midway.taken(epoch)
            if falls and not teaching.keep_momentum:
                fit.optimizer.state.clear()
            began = time.perf_counter()
            step = partial(teach, method=teaching.method)
            augment = partial(preprocess, epoch=epoch)
            metrics = train_one_epoch(fit, loader, partial(step, preprocess=augment), epoch)
            # Test.
            trained = time.perf_counter()
            metrics |= validate(
                fit.net, test_loaders, runtime, partial(step, preprocess=preprocess)
            )
            # Write our log and the authors', and save.
            run.write(epoch, metrics | {"lr": rates[epoch]})
            if runtime.is_main:
                write_authors_log(
                    folder,
                    vars(args),
                    couple,
                    metrics,
                    epoch=epoch + 1,
                    num_classes=len(images.classes),
                    train_time=trained - began,
                    test_time=time.perf_counter() - trained,
                )
            if runtime.is_main and run.is_due_to_save(epoch):
                of_run, of_nets = nets_to_save(folder, fit, couple, epoch + 1, metrics, facts)
                run.save_last(epoch + 1, of_run, beside=of_nets)

    say_saved(run, metrics, parser.again((*options.IMAGES, *options.MACHINE), args), runtime)


if __name__ == "__main__":
    main()
