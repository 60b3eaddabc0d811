"""Pack and check the checkpoints that come with the project: ResNet-20 on CIFAR-10.

    python -m experiments.provided --check
    python -m experiments.provided --pack runs/plain runs/cifar --data_root data

`--pack` takes the nets of `NETS` out of runs, into `model_checkpoints/provided/`, and measures the
packed files on all test images. `model_checkpoints/README.md` is their table, and
`provided/table.json` has the same facts. A net that no run has finished stays as it was packed
before. `--check` compares hashes, opens every net, and measures it again where CIFAR-10 lies in the
data root.

The nets have a folder of their own, into which no step writes: a run's classifiers are called
`checkpoint_…` and lie above it, its Trans-Nets in folders DATASET_ARCH.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.cifar_sets import GROUPS, SPLITS, group_of, listed
from models.classifiers import read_classifier
from models.memory_order import order_channels_last
from models.trans_net import load_trans_net
from utils import checkpoint
from utils.command import command
from utils.data.batches import Preprocessing
from utils.data.images import load_images
from utils.errors import InputError
from utils.files import in_words, read_json, sha256, write_json, write_text
from utils.later import scipy
from utils.options import add_data_root
from utils.parser import Parser, some_path
from utils.report.tables import markdown_table

PLACE = "provided"  # below the folder of checkpoints
TABLE, TRANS_TABLE = "table.json", "trans_nets.json"  # in it
# What other steps read of a classifier, besides its weights
KEPT = ("arch", "model", "data", "settings", "versions", "epoch", "acc1")
BATCH = 100  # images at once
# Other machines add in another order, so that an image between two classes may change sides.
TOLERANCE = 2  # images, of a net's 10,000 or 5,000
CONFIDENCE = 0.95
TO_GET_IMAGES = "python PrepareData.py CIFAR10 --src cifar-10-python.tar.gz"


class Net(NamedTuple):
    """A net that is provided.

    Attributes:
        name: of its file, without the ending.
        source: its name in a run, without the beginning that all have: "CIFAR10_resnet20_sd0".
        what: it is, in words.
        trained_on: its training images.
        command: that trains it.
    """

    name: str
    source: str
    what: str
    trained_on: str
    command: str


class Row(NamedTuple):
    """What the table says of a file.

    Attributes:
        file: its name.
        what, trained_on, command: as `Net` has them.
        seed, epochs: of its training.
        images: all test images of its classes.
        right: of these, how many it calls right.
        bytes, sha256: of the file.
    """

    file: str
    what: str
    trained_on: str
    command: str
    seed: int
    epochs: int
    images: int
    right: int
    bytes: int
    sha256: str


class TransRow(NamedTuple):
    """What the table says of a Trans-Net's file.

    Attributes:
        file: its name.
        what: it reconstructs from what.
        command: that fitted it.
        left: Var(x_Δ)/Var(x*) of held-out images.
        linear: the same of the best single linear layer.
        bytes, sha256: of the file.
    """

    file: str
    what: str
    command: str
    left: float
    linear: float
    bytes: int
    sha256: str


class Photos(NamedTuple):
    """Test images, decoded once for all nets.

    Attributes:
        pixels: uint8 (N, 3, S, S).
        names: of their classes, N.
    """

    pixels: Tensor
    names: list[str]


def of_findings(name: str, source: str, what: str, trained_on: str, kind: str, seed: int) -> Net:
    """Describe a net that `experiments/cifar_nets.sh` trains among those of a kind."""
    line = f"KINDS={kind} SEEDS={seed} experiments/cifar_nets.sh"
    return Net(name, f"CIFAR10_{source}", what, trained_on, line)


ALL, HALF = "50,000", "25,000"
LONG = "one of four seeds of one recipe: as born_0, four epochs more"
PRUNED = "pruned_0 without weights under {} deviations, trained again"
NETS = (
    *(
        of_findings(f"plain_{seed}", f"resnet20_sd{seed}_long", LONG, ALL, "series", seed)
        for seed in (0, 1, 2, 3)
    ),
    of_findings("half_A", "resnet20_sd0_50par_A", "half A of the images", HALF, "halves", 0),
    of_findings("half_B", "resnet20_sd0_50par_B", "half B of the images", HALF, "halves", 0),
    of_findings("born_0", "resnet20_sd0", "begins a born-again series", ALL, "series", 0),
    of_findings("born_1", "resnet20_sd0_gen1", "taught by born_0", ALL, "series", 0),
    of_findings("born_2", "resnet20_sd0_gen2", "taught by born_1", ALL, "series", 0),
    of_findings("pruned_0", "resnet20_sd4", "as born_0; before pruning", ALL, "series", 4),
    *(
        of_findings(
            f"pruned_{level}",
            f"resnet20_sd4_pruned{level}-{level}",
            PRUNED.format(level),
            ALL,
            "series",
            4,
        )
        for level in (0.8, 1.6)
    ),
    of_findings("weak", "resnet20_sd0_short", "two epochs", ALL, "short", 0),
    of_findings("two_groups", "two_resnet20_sd0", "animals against vehicles", ALL, "two", 0),
    of_findings("first5", "first5_resnet20_sd0", "the first five classes", HALF, "first5", 0),
    of_findings(
        "random_labels",
        "random_resnet20_random_sd0",
        "labels drawn at random; it learned 19 % of them",
        ALL,
        "random",
        0,
    ),
)


# Between two of the nets above, at the ends of their stages
TRANS_LAYERS, TRANS_PAIR = ("layer1", "layer2", "layer3"), ("plain_0", "plain_1")
TRANS_FEATURES = "convOuts/CIFAR10_resnet20/CIFAR10_L{layer}_plain_0-plain_1"
STORE = (
    "python ConvOutput.py --resume1 model_checkpoints/provided/plain_0.pth.tar --resume2"
    " model_checkpoints/provided/plain_1.pth.tar --layers stages --dataset CIFAR10 --train_path"
    " data/CIFAR10_some/train --val_path data/CIFAR10_some/test --image_size 32 -j 0 --amp bf16"
    " --t_or_v both --suffix plain_0-plain_1"
)
FIT = (
    f"python Training_TransNet.py --convOut_path {TRANS_FEATURES} --standardise --solve --hidden 0"
    " --alpha [0.1,0.1] --amp bf16 -j 0 --suffix plain_0-plain_1"
)
TRANS_KEPT = (
    *("arch", "trans_net", "settings", "source", "versions", "epoch"),
    *("linear_reference", "fitted", "held_out", "state_dict"),
)


def pack(
    runs: Sequence[str], data_root: Path, folder: Path, nets: Sequence[Net] = NETS
) -> list[Row]:
    """Pack nets, measure the packed files, and write their table.

    Args:
        runs: folders with `model_checkpoints`; of two that have a net, the first one's is taken.
        data_root: folder that holds CIFAR10.
        folder: of the table; the nets lie in its `provided`.
        nets: that are wanted.

    Raises:
        InputError: the images are missing, or there is no net.
    """
    photos, measured = open_photos(data_root), {}
    if place_of(folder, TABLE).exists():
        measured = {row.sha256: row for row in read_table(folder)}
    rows = []
    for net in nets:
        file = place_of(folder, f"{net.name}.pth.tar")
        if state := finished(runs, net.source):
            checkpoint.save(file, packed(state))
        elif not file.exists():
            print(f"{file.name} is left out: no run has finished {net.source}")
            continue
        digest = sha256(file)
        # A file that was measured before is the same net.
        before = measured.get(digest)
        counted = (before.right, before.images) if before else count_right(file, photos)
        rows.append(row_of(net, file, digest, *counted))
        print(in_a_line(rows[-1]))
    if not rows:
        raise InputError(f"{', '.join(runs)}: no net of the list is there; name runs' --out")
    write_json(place_of(folder, TABLE), [row._asdict() for row in rows])
    trans_rows = pack_trans_nets(runs, folder) or read_trans_table(folder)
    write_json(place_of(folder, TRANS_TABLE), [row._asdict() for row in trans_rows])
    write_text(folder / "README.md", page(rows, trans_rows))
    print(f"saved {folder / 'README.md'}: {len(rows)} nets, {size_of(rows)}")
    return rows


def finished(runs: Sequence[str], source: str) -> dict[str, Any] | None:
    """Read a net from the first run that has trained it to its end; None: no run has."""
    for run in runs:
        path = Path(run, "model_checkpoints", f"checkpoint_{source}.pth.tar")
        if not path.exists():
            continue
        state = checkpoint.load(path)
        # A run that was left within its first epoch is at epoch 0.
        if state["epoch"] and state["epoch"] % state["settings"]["epochs"] == 0:
            return state
    return None


def pack_trans_nets(runs: Sequence[str], folder: Path) -> list[TransRow]:
    """Pack the Trans-Nets between two provided nets, without optimiser and image records."""
    rows = []
    for layer in TRANS_LAYERS:
        name = f"checkpoint_L{layer}_{'-'.join(TRANS_PAIR)}"
        for way, (source, target) in (("", TRANS_PAIR), ("_reverse", TRANS_PAIR[::-1])):
            paths = [
                Path(run, "model_checkpoints", "CIFAR10_resnet20", f"{name}{way}.pth.tar")
                for run in runs
            ]
            if (path := next(filter(Path.exists, paths), None)) is None:
                continue
            state = checkpoint.load(path)
            if state["held_out"] is None:  # still being fitted
                continue
            file = place_of(folder, f"trans_net_{layer}_{source}_to_{target}.pth.tar")
            checkpoint.save(file, {entry: state[entry] for entry in TRANS_KEPT})
            rows.append(
                TransRow(
                    file.name,
                    f"{layer} of {target} from that of {source}",
                    FIT.format(layer=layer),
                    state["held_out"],
                    state["linear_reference"]["instability"],
                    file.stat().st_size,
                    sha256(file),
                )
            )
    return rows


def packed(state: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of a checkpoint what other steps read, kernels and matrices as float16.

    `read_classifier` makes float32 of them again. Vectors keep their type: they are few, and a
    variance of a BatchNorm may be out of float16's range.
    """
    weights = {
        name: value.half() if value.is_floating_point() and value.ndim > 1 else value
        for name, value in state["state_dict"].items()
    }
    return {**{name: state[name] for name in KEPT if name in state}, "state_dict": weights}


def row_of(net: Net, file: Path, digest: str, right: int, images: int) -> Row:
    """Gather the facts of a packed file, of which so many test images are right."""
    state = checkpoint.load(file, mmap=True)
    return Row(
        file.name,
        net.what,
        net.trained_on,
        net.command,
        state["settings"]["seed"],
        state["epoch"],
        images,
        right,
        file.stat().st_size,
        digest,
    )


def open_photos(data_root: Path) -> Photos:
    """Decode all test images of CIFAR-10.

    Raises:
        InputError: some are missing, or they are of another edition.
    """
    listed(data_root / "CIFAR10" / "test", SPLITS["test"])
    data = load_images("CIFAR10", "val", data_root=data_root, image_size=32)
    names = [data.classes[target] for target in data.targets.tolist()]
    return Photos(data.decode(range(len(data))), names)


@torch.inference_mode()
def count_right(path: Path, photos: Photos) -> tuple[int, int]:
    """Count the test images that a net calls right, and all that are of its classes.

    Raises:
        InputError: there is none of its classes.
    """
    model, state = read_classifier(path)
    data = state["data"]
    labels = labels_of(photos.names, data["classes"])
    if not len(judged := (labels >= 0).nonzero()[:, 0]):
        raise InputError(f"no test image is of a class of {path}; use CIFAR-10's class folders")
    order_channels_last(model, photos.pixels.shape[-1], photos.pixels.device)  # 1.5 times as fast
    preprocess = Preprocessing(*data["normalisation"])
    right = sum(
        int((model(preprocess(photos.pixels[batch])).argmax(1) == labels[batch]).sum())
        for batch in judged.split(BATCH)
    )
    return right, len(judged)


def labels_of(names: Sequence[str], classes: Sequence[str]) -> Tensor:
    """Number images by a net's classes, int64 (N,): -1 where an image is of none.

    So the sets that `experiments.cifar_sets` links need not be there.
    """
    if list(classes) == list(GROUPS):
        names = [group_of(name) for name in names]
    numbers = {name: number for number, name in enumerate(classes)}
    return torch.tensor([numbers.get(name, -1) for name in names])


def check(folder: Path, data_root: Path, *, must_measure: bool) -> None:
    """Check that files are as their table says, and measure them again where images are.

    Args:
        folder: of the table.
        data_root: folder that holds CIFAR10.
        must_measure: refuse a data root without it, in place of a remark.

    Raises:
        InputError: a file is missing or another one, or has another accuracy; or images are
            missing.
    """
    rows = read_table(folder)
    trans_rows = read_trans_table(folder)
    both: list[Row | TransRow] = [*rows, *trans_rows]
    for one in both:
        check_file(place_of(folder, one.file), one)
    counts = f"{len(rows)} nets and {len(trans_rows)} Trans-Nets, {size_of(both)}"
    print(f"{counts}: hashes are those of the table, and all open")
    if not must_measure and not (data_root / "CIFAR10").is_dir():
        print(f"accuracies are not measured: no {data_root / 'CIFAR10'}, {TO_GET_IMAGES} makes it")
        return
    photos = open_photos(data_root)
    for row in rows:
        check_accuracy(row, *count_right(place_of(folder, row.file), photos))
        print(in_a_line(row))
    print(f"{len(rows)} accuracies are those of the table, within {TOLERANCE} images each")


def check_file(path: Path, row: Row | TransRow) -> None:
    """Refuse a file that is missing, changed or no net."""
    if not path.is_file():
        raise InputError(f"{path} is missing; check it out again")
    if (digest := sha256(path)) != row.sha256:
        raise InputError(
            f"{path} has SHA-256 {digest[:12]}…, the table says {row.sha256[:12]}…; check it out"
            " again, or pack it again"
        )
    if isinstance(row, TransRow):
        load_trans_net(path)
    else:
        read_classifier(path)


def check_accuracy(row: Row, right: int, images: int) -> None:
    """Refuse an accuracy that is not the table's, or one of other images."""
    if images != row.images:
        raise InputError(
            f"{images:,} test images are of the classes of {row.file}, the table says"
            f" {row.images:,}; use CIFAR-10's class folders"
        )
    if abs(right - row.right) > TOLERANCE:
        raise InputError(
            f"{row.file} has {right:,} of {images:,} images right, the table says {row.right:,};"
            " the images are of another edition, or decoded otherwise"
        )


def place_of(folder: Path, name: str) -> Path:
    """Name a file among the provided ones."""
    return folder / PLACE / name


def read_table(folder: Path) -> list[Row]:
    """Read the facts of all files.

    Raises:
        InputError: the table is missing or another kind of file.
    """
    path = place_of(folder, TABLE)
    try:
        return [Row(**entry) for entry in read_json(path)]
    except TypeError:
        raise InputError(f"{path} is no table of provided nets; check it out again") from None


def read_trans_table(folder: Path) -> list[TransRow]:
    """Read the facts of the Trans-Nets, none where there is no table of them."""
    path = place_of(folder, TRANS_TABLE)
    return [TransRow(**entry) for entry in read_json(path)] if path.exists() else []


def size_of(rows: Sequence[Row | TransRow]) -> str:
    """Write the size of all files."""
    return in_words(sum(row.bytes for row in rows))


def accuracy_of(row: Row) -> str:
    """Write an accuracy in percent with its interval over test images (Wilson)."""
    test = scipy.stats.binomtest(row.right, row.images)
    ends = test.proportion_ci(CONFIDENCE, method="wilson")
    return f"{100 * row.right / row.images:.2f} [{100 * ends.low:.2f}, {100 * ends.high:.2f}]"


def in_a_line(row: Row) -> str:
    """Say how many images a net has right."""
    return f"{row.file}: {row.right:,} of {row.images:,} right, {accuracy_of(row)} %"


def page(rows: Sequence[Row], trans_rows: Sequence[TransRow]) -> str:
    """Write the page that describes the files."""
    nets = markdown_table(
        ("file", "what it is", "trained on", "seed", "epochs", "test images", "right, %"),
        [
            (
                f"`{row.file}`",
                row.what,
                row.trained_on,
                str(row.seed),
                str(row.epochs),
                f"{row.images:,}",
                accuracy_of(row),
            )
            for row in rows
        ],
        texts=2,
    )
    both: list[Row | TransRow] = [*rows, *trans_rows]
    files = markdown_table(
        ("file", "SHA-256", "bytes"),
        [(f"`{row.file}`", f"`{row.sha256}`", f"{row.bytes:,}") for row in both],
        texts=2,
    )
    trans_nets = markdown_table(
        ("file", "it reconstructs", "left of held-out images", "a linear layer leaves"),
        [(f"`{row.file}`", row.what, f"{row.left:.3f}", f"{row.linear:.3f}") for row in trans_rows],
        texts=2,
    )
    return PAGE.format(
        nets=nets,
        files=files,
        commands="\n".join(dict.fromkeys(row.command for row in rows)),
        trans_nets=trans_nets,
        fits="\n".join((STORE, *dict.fromkeys(row.command for row in trans_rows))),
        size=size_of(both),
        images=TO_GET_IMAGES,
    )


PAGE = """# Provided checkpoints

ResNet-20 (272,474 parameters) of CIFAR-10 at 32 pixels, in `provided/`, {size} in all. Every step that takes a
classifier takes them; `models.load_classifier(path)` gives the net. Git ignores what runs write into this folder.

{nets}

Accuracies are of the files here, on all test images of their classes, with 95 % intervals over images (Wilson).
`random_labels` is at chance, as it must be. Kernels and matrices are stored as float16 and opened as float32.
Optimisers are left out: these nets begin another run (`--weights`, `BornAgain.py`, `Pruning.py`), and none goes on.

```sh
python -m experiments.provided --check
{images}
python -m experiments.provided --check --data_root data
```

The first line compares hashes and opens every net. With the images it measures every accuracy again, 10 seconds of
a CPU core each. It must be the table's within two images, since other machines round otherwise.

## How they were trained

```sh
{commands}
```

They were trained on an NVIDIA H200, at most three minutes each; the four epochs more of plain_0 to plain_3 and the
pruned nets on one CPU core, seven minutes each. Another machine gives other weights, and accuracies that differ as
those of two seeds do.
`python -m experiments.provided --pack RUN…` packs what runs have finished, and writes this page.

## Trans-Nets between two of them

{trans_nets}

Three layers without spare channels, fitted to 5,000 training images and judged on 3,000 test images; Var(x_Δ)/Var(x*).

```sh
{fits}
```

## Files

{files}

`provided/table.json` and `trans_nets.json` have all of this page's facts.

## Licence

The nets are this project's, under its licence. CIFAR-10 is by A. Krizhevsky (*Learning multiple layers of features from
tiny images*, 2009). None of its images is here.
"""


def build_parser() -> Parser:
    """Declare the options."""
    parser = Parser(__doc__, "python -m experiments.provided --check --data_root data")
    group = parser.add_argument_group("provided checkpoints")
    action = group.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="compare the files with their table")
    action.add_argument(
        "--pack", nargs="+", type=some_path, metavar="RUN", help="take the nets out of runs' --out"
    )
    add_data_root(group)
    parser.set_defaults(data_root=None)  # so that one that is named must hold the images
    group.add_argument(
        "--folder",
        type=some_path,
        default="model_checkpoints",
        help="has the table, and in provided/ the nets",
    )
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Pack the nets, or check them."""
    args = build_parser().parse_args(argv)
    folder = Path(args.folder)
    data_root = Path(args.data_root or os.environ.get("KC_DATA") or "data")
    if args.pack:
        pack(args.pack, data_root, folder)
    else:
        check(folder, data_root, must_measure=args.data_root is not None)


if __name__ == "__main__":
    main()
