"""What takes turns in `bench_plain`: a step of the suite,
the plain procedure and their bare convolutions.
"""

import contextlib
import io
import itertools
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import nn

import Training_TransNet
import transClassifier
from benchmarks import plain, turns
from benchmarks.roofline import bare_convolutions, bare_training
from benchmarks.turns import Turn, process, timed
from models.classifiers import build, classifier_record, load_classifier
from models.frozen import freeze_for_inference
from models.split import split
from models.trans_net import TransNet, load_trans_net
from utils import checkpoint, runs
from utils.data.loaders import make_loader
from utils.features.cache import open_features
from utils.features.writer import FeatureWriter
from utils.provenance import Provenance

CLASSES = 8
PIECE = 8  # images of the batches whose bare convolutions are measured
FEATURE = (512, 28, 28)
OURS, PLAIN, BEST = "suite", "plain", "roofline"


Contest = dict[str, Callable[[], Turn]]


class Row(NamedTuple):
    """One comparison.

    Attributes:
        title: in the table.
        roofline: what that is here.
        images: how many one turn takes.
        of_plain: how many times as fast as the plain procedure the suite shall be; None: no target.
        of_roofline: what share of the roofline's speed it shall reach.
        of_photos: whether it reads real photos.
        prepare: gives what takes turns on so many images, in an empty folder.
    """

    title: str
    roofline: str
    images: int
    of_plain: float | None
    of_roofline: float
    of_photos: bool
    prepare: Callable[[Path, int], Contest]


def photos(folder: Path, count: int) -> Path:
    """Link real photos, as many of each class, and each as often as that takes."""
    for place in sorted(Path(os.environ["KC_REAL_DATA"], "CUB_200_2011", "images").iterdir())[
        :CLASSES
    ]:
        copy = folder / "photos" / place.name
        copy.mkdir(parents=True)
        for number, file in zip(range(count // CLASSES), itertools.cycle(sorted(place.iterdir()))):
            (copy / f"{number}.jpg").symlink_to(file)
    return folder / "photos"


def save_nets(folder: Path) -> tuple[Path, Path, Path]:
    """Save nets A and B and a Trans-Net between them."""
    return *save_classifiers(folder, "vgg16_bn"), save_trans_net(folder)


def save_classifiers(folder: Path, arch: str) -> tuple[Path, Path]:
    """Save nets A and B, of the same weights."""
    state = {
        "model": classifier_record(arch, CLASSES),
        "state_dict": build(arch, CLASSES).state_dict(),
    }
    for path in (a := folder / "A.pth.tar", b := folder / "B.pth.tar"):
        checkpoint.save(path, state)
    return a, b


def save_trans_net(folder: Path) -> Path:
    """Save a Trans-Net of three layers."""
    path, trans_net = folder / "G.pth.tar", TransNet(FEATURE[0], FEATURE[0])
    checkpoint.save(path, {"trans_net": trans_net.config, "state_dict": trans_net.state_dict()})
    return path


def conv_output(folder: Path, count: int) -> Contest:
    """Store the features of both nets: whole runs."""
    images, (a, b, _) = photos(folder, count), save_nets(folder)
    data = (
        "--dataset",
        "folder",
        "--train_path",
        images,
        "--data_root",
        folder,
        "--conv_layer",
        30,
    )
    number = itertools.count()
    bare = bare_convolutions(frozen(a), torch.randn(PIECE, 3, 224, 224))
    return {
        OURS: lambda: process(
            "ConvOutput.py",
            "--resume1",
            a,
            "--resume2",
            b,
            *data,
            "--out",
            folder / f"{next(number)}",
        ),
        PLAIN: lambda: process(
            "-m", "benchmarks.plain", "conv_output", a, b, images, folder / f"{next(number)}"
        ),
        # The bare pass runs one net on PIECE images: it stands for both nets on all of them.
        BEST: lambda: timed(bare, 2 * count / PIECE),
    }


def variance(folder: Path, count: int) -> Contest:
    """Measure variances from both nets: whole runs."""
    images, (a, b, g) = photos(folder, count), save_nets(folder)
    data = ("--dataset", "folder", "--val_path", images, "--data_root", folder, "--conv_layer", 30)
    head = bare_convolutions(frozen(a, "features.30"), torch.randn(PIECE, 3, 224, 224))
    six = bare_decomposition(load_trans_net(g), torch.randn(PIECE, *FEATURE))
    return {
        OURS: lambda: process("Variance.py", "--net_in", a, "--net_tar", b, "--transnet", g, *data),
        PLAIN: lambda: process("-m", "benchmarks.plain", "variance", a, b, images, g),
        BEST: lambda: timed(lambda: (head(), head(), six()), count / PIECE),
    }


def decompose(folder: Path, count: int) -> Contest:
    """Split features that lie in memory."""
    g, x = save_trans_net(folder), torch.randn(count, *FEATURE)
    ours, theirs = (
        load_trans_net(g).requires_grad_(False),
        plain.open_trans_net(g).requires_grad_(False),
    )
    six = bare_decomposition(load_trans_net(g), x)
    return {
        OURS: lambda: timed(lambda: ours.decompose(x)),
        PLAIN: lambda: timed(lambda: plain.one_by_one(theirs, x)),
        BEST: lambda: timed(six),
    }


def read_once(loader: Any) -> None:
    """Read every batch."""
    for _ in loader:
        pass


def read_files(folder: Path, memory: bytearray) -> None:
    """Read the files of stored features from their beginnings to their ends,
    always into the same memory.
    """
    for path in folder.glob("features_*.npy"):
        with path.open("rb", buffering=0) as file:
            while file.readinto(memory):
                pass


def reading(folder: Path, count: int) -> Contest:
    """Read stored features for one epoch; the pickles are shuffled too."""
    plain.store_random(folder / "pickles", count, FEATURE)
    cache_of(folder / "pickles", folder / "cache")
    shuffled = make_loader(open_features(folder / "cache"), plain.BATCH_SIZE, shuffle=True)
    batch = bytearray(plain.BATCH_SIZE * 4 * math.prod(FEATURE))
    return {
        OURS: lambda: timed(lambda: read_once(shuffled)),
        PLAIN: lambda: timed(lambda: read_once(plain.pickled(folder / "pickles"))),
        BEST: lambda: timed(lambda: read_files(folder / "cache", batch)),
    }


def fitting(folder: Path, count: int) -> Contest:
    """Fit a Trans-Net for one epoch."""
    plain.store_random(folder / "pickles", count, FEATURE)
    cache_of(folder / "pickles", folder / "cache")
    theirs = plain.PlainTransNet(FEATURE[0])
    optimizer = torch.optim.Adam(theirs.parameters(), 1e-4, weight_decay=1e-4)
    eight = bare_training(TransNet(FEATURE[0], FEATURE[0]), torch.randn(PIECE, *FEATURE))
    words = [
        "--convOut_path",
        folder / "cache",
        "--alpha",
        "[0.1,0.1]",
        "-b",
        PIECE,
        "--no_reference",
        "--one_direction",
        "--epochs",
        2,
    ]
    return {
        OURS: lambda: second_epoch(Training_TransNet, folder, words),
        PLAIN: lambda: timed(
            lambda: plain.fit_epoch(theirs, optimizer, plain.pickled(folder / "pickles", PIECE))
        ),
        BEST: lambda: timed(eight, count / PIECE),
    }


def refining(folder: Path, count: int) -> Contest:
    """Tune a tail for one epoch, not the first."""
    images, (a, b, g) = photos(folder, count), save_nets(folder)
    nets, theirs = (plain.open_vgg(a), plain.open_vgg(b).train()), plain.open_trans_net(g)
    optimizer = torch.optim.Adam(plain.tail_parameters(nets[1]), 1e-5, weight_decay=1e-4)
    tail = split(load_classifier(b), "features.30")[1].train()
    tail_optimizer = torch.optim.Adam(tail.parameters(), 1e-5, weight_decay=1e-4, fused=True)
    feature, targets = torch.randn(PIECE, *FEATURE), torch.arange(PIECE) % CLASSES
    words = [
        "--net_A",
        a,
        "--net_B",
        b,
        "--resume_Ys",
        g,
        "--dataset",
        "folder",
        "--train_path",
        images,
    ]
    words += [
        "--val_path",
        images,
        "--data_root",
        folder,
        "--conv_layer",
        30,
        "-b",
        PIECE,
        "--epochs",
        2,
    ]
    loader = plain.photos(str(images), PIECE, shuffle=True)
    return {
        OURS: lambda: second_epoch(transClassifier, folder, words),
        PLAIN: lambda: timed(lambda: plain.refine_epoch(*nets, theirs, optimizer, loader)),
        BEST: lambda: timed(
            lambda: plain.tail_step(tail, tail_optimizer, feature, targets), count / PIECE
        ),
    }


def second_epoch(step: Any, folder: Path, words: list[Any]) -> Turn:
    """Run a step for two epochs, quietly; give what its log says of the second."""
    timed_by_ours = mock.patch.object(runs, "time", SimpleNamespace(monotonic=turns.clock))
    with (
        tempfile.TemporaryDirectory(dir=folder) as out,
        contextlib.redirect_stdout(io.StringIO()),
        timed_by_ours,
    ):
        step.main([*map(str, words), "--val_epoch", "9", "--out", out])
        (log,) = Path(out).glob("logs/*/*/metrics.jsonl")
        return Turn(runs.read_metrics(log)[1]["seconds"])


def frozen(path: Path, layer: str | None = None) -> nn.Module:
    """Read the frozen form of a net, or of its head."""
    model = load_classifier(path)
    return freeze_for_inference(split(model, layer)[0] if layer else model, torch.device("cpu"))


def bare_decomposition(trans_net: TransNet, x: torch.Tensor) -> Callable[[], None]:
    """Give the function that runs the convolutions of a decomposition alone."""
    return bare_convolutions(trans_net, x, trans_net.decompose)


def cache_of(pickles: Path, folder: Path, shape: tuple[int, ...] = FEATURE) -> None:
    """Store what the pickles hold, maps of a shape, in the suite's format."""
    old = open_features(pickles)
    provenance = Provenance(dataset="random", split="train", arch="vgg16_bn", label="30")
    with FeatureWriter(
        folder,
        provenance=provenance,
        paths=old.paths,
        shape_a=shape,
        shape_b=shape,
        dtype=torch.float32,
        top_k=(1,),
    ) as writer:
        for row in range(len(old)):
            a, b, targets, _ = old.__getitems__([row])
            for net, feature in (("a", a), ("b", b)):
                writer.write(net, [row], feature, targets, torch.ones(1, 1) > 0)
        writer.finish()


ROWS = {
    "conv_output": Row(
        "`ConvOutput.py`, whole run", "both nets' convolutions", 8, 2.5, 0.75, True, conv_output
    ),
    "variance": Row(
        "`Variance.py`, whole run", "two heads' and six convolutions", 8, 7, 0.75, True, variance
    ),
    "decompose": Row("`decompose`", "six convolutions", 8, 2, 0.92, False, decompose),
    "fitting": Row(
        "`Training_TransNet.py`, an epoch", "eight convolutions", 8, 1.3, 0.9, False, fitting
    ),
    "reading": Row(
        "the cache, read shuffled", "its files in order, by batches", 128, 5, 0.7, False, reading
    ),
    "refining": Row(
        "`transClassifier.py`, the second epoch", "the tail alone", 32, 4, 1 / 1.1, True, refining
    ),
}
