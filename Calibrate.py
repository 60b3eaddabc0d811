"""Say what an instability is worth: what pairs that share nothing leave (nulls), what perfect ones do (ceilings).

With the budget of a Trans-Net (its layers, epochs, rates, closed form) others are fitted: to pairs shuffled within the
class, to pairs shuffled over all images, to A → A, and to the same pairs from another seed. The normalised consistency
is 0 for pairs that share nothing beyond the class and 1 for what A → A reaches:

    (null − instability) / (null − ceiling)

Intervals are 95 % over the held-out images, and hold every Trans-Net as it was fitted.
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from models.fitting import check_fit
from models.pair import read_stored
from models.trans_net import TransNet, build_from_state
from utils import checkpoint, opening, options
from utils.errors import InputError
from utils.files import sha256, write_csv, write_json
from utils.measures.bootstrap import bootstrap
from utils.measures.calibration import consistency_interval, shuffled_within_class
from utils.measures.image_moments import ImageMoments
from utils.measures.pair_sums import PairSums
from utils.measures.similarity import linear_cka, procrustes, ridge_r2, svcca
from utils.parser import Namespace, Parser, result_file, some_path, whole
from utils.progress import Progress
from utils.provenance import Provenance
from utils.report.tables import calibration_table
from utils.runtime import Runtime, command, seed_everything
from utils.training import closed_form, reconstruction
from utils.training.family import Family

NULL, CEILING = "null: shuffled within the class", "ceiling: A → A"
BUDGET = ("epochs", "lr", "logspace", "epoch_step", "decay_factor", "optim", "momentum", "weight_decay", "batch_size")


class Pairing(Dataset[Any]):
    """Stored features with x of image i beside the target of image order[i], or beside x itself.

    Args:
        features: of both nets.
        order: int64 (N,); None: the true pairs.
        itself: the target is x: A → A.
    """

    def __init__(self, features: opening.Features, order: Tensor | None = None, *, itself: bool = False) -> None:
        self.features, self.order, self.itself = features, order, itself

    def __len__(self) -> int:
        return len(self.features)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Give x, target, labels, and the numbers of the targets' images."""
        x, target, labels, rows = self.features.__getitems__(indices)
        if self.order is not None:
            rows = self.order[rows]
            _, target, labels, _ = self.features.__getitems__(rows.tolist())
        return x, x if self.itself else target, labels, rows


class Fitted(NamedTuple):
    """Sums of every held-out image after a fit, and what the linear reference leaves."""

    moments: ImageMoments
    linear: float | None


def build_parser() -> Parser:
    """Declare this step's options."""
    parser = Parser(__doc__, "python Calibrate.py --convOut_path convOuts/… --transnet G.pth.tar")
    group = parser.add_argument_group("what is calibrated")
    group.add_argument("--convOut_path", required=True, type=some_path, metavar="FOLDER", help="train and val features")
    group.add_argument("--transnet", required=True, type=some_path, metavar="FILE", help="the Trans-Net, one of ours")
    group.add_argument("--reverse", action="store_true", help="it reconstructs A's features from B's")
    group.add_argument("--epochs", type=whole(0), help="of the other fits; default: the Trans-Net's own")
    group.add_argument("--bootstrap", type=whole(100), default=1000, metavar="N", help="resamples of the images")
    group = parser.add_argument_group("results")
    group.add_argument("--json", type=result_file(), metavar="FILE", help="write everything as JSON")
    group.add_argument("--csv", type=result_file(), metavar="FILE", help="write the table as CSV")
    options.add_run_options(parser)
    parser.set_defaults(dataset=None, print_freq=10)
    return parser


def budget_of(args: Namespace, state: checkpoint.State) -> Namespace:
    """Give the options of the Trans-Net's own fit, with this run's devices."""
    settings = state.get("settings")
    if not settings:
        raise InputError(f"{args.transnet} does not say how it was fitted; fit it anew with Training_TransNet.py")
    known = {name: settings[name] for name in (*BUDGET, "solve", "alpha", "L2")}
    known["epochs"] = known["epochs"] if args.epochs is None else args.epochs
    return Namespace(**vars(args) | known)


def fit(
    budget: Namespace, config: dict[str, Any], train: Pairing, val: Pairing, *, seed: int, runtime: Runtime
) -> Fitted:
    """Fit a Trans-Net to some pairs with a given budget, and measure it on held-out pairs of the same kind."""
    seed_everything(seed)
    net = TransNet(**config | ({"out_channels": config["in_channels"], "out_size": None} if train.itself else {}))
    linear = net.linear_reference().to(runtime.device)
    family = Family([net])
    running = opening.fit(budget, family, runtime)
    loader, in_order = (opening.feature_loader(budget, train, runtime, shuffle=shuffle) for shuffle in (True, False))
    unseen = opening.feature_loader(budget, val, runtime)
    reconstruction.set_standards([linear, net], in_order, read_stored, runtime)
    reference = closed_form.linear_reference(linear, in_order, unseen, read_stored, runtime)
    solve = partial(closed_form.solve_or_linear, [net], reference, in_order, read_stored, runtime)
    if budget.solve is not None:
        solve(last=not budget.epochs)
    alpha = torch.zeros(net.order) if budget.L2 else torch.tensor(budget.alpha).flip(0)
    step = partial(reconstruction.reconstruct, family=family, alphas=[alpha.to(runtime.device)], read=read_stored)
    for _ in reconstruction.epochs(running, loader, step, opening.rates(budget), solve_every=budget.solve, solve=solve):
        pass
    return Fitted(measure(net, unseen, runtime), reference.instability)


@torch.no_grad()
def measure(net: TransNet, loader: opening.Loader, runtime: Runtime) -> ImageMoments:
    """Keep g(x) and x_Δ of every held-out image as sums."""
    net.eval()
    moments = ImageMoments()
    for batch in Progress(loader, "held-out images", quiet=not runtime.is_main):
        *_, rows = on_device = runtime.to_device(batch)
        x, target = read_stored(*on_device)
        check_fit(net, x, target)
        output = net(x)
        moments.update(output[None], target - output, rows)
    return moments


def baselines(train: Dataset[Any], val: Dataset[Any], budget: Namespace, runtime: Runtime) -> list[dict[str, Any]]:
    """Measure other people's similarities on the same held-out features."""
    sums = []
    for data in (train, val):
        sums.append(PairSums())
        for batch in opening.feature_loader(budget, data, runtime):
            sums[-1].update(*read_stored(*runtime.to_device(batch)))
    fitted, held_out = (part.cpu() for part in sums)
    scores = (linear_cka(held_out), svcca(held_out), procrustes(held_out), ridge_r2(fitted, held_out))
    return [asdict(score) for score in scores]


def pairings(train: opening.Features, val: opening.Features, seed: int) -> dict[str, tuple[Pairing, Pairing]]:
    """Name the kinds of pairs that other Trans-Nets are fitted to and measured on."""
    generator = torch.Generator().manual_seed(seed)
    labels = [part.targets if part.targets.ndim == 1 else torch.zeros(len(part)) for part in (train, val)]
    kinds = {}
    for name, classes in ((NULL, labels), ("null: shuffled over all images", map(torch.zeros_like, labels))):
        first, second = (shuffled_within_class(part, generator) for part in classes)
        kinds[name] = (Pairing(train, first), Pairing(val, second))
    kinds[CEILING] = (Pairing(train, itself=True), Pairing(val, itself=True))
    kinds["the same pairs, another seed"] = (Pairing(train), Pairing(val))
    return kinds


@command
def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the step; returns the report that --json writes."""
    args = build_parser().parse_args(argv)
    runtime = opening.start(args)
    state = checkpoint.load(args.transnet)
    trans_net, budget = build_from_state(state, args.transnet), budget_of(args, state)
    train, val = (opening.stored_features(args, args.convOut_path, split, {}) for split in ("train", "val"))
    Provenance.from_record(state.get("source", {})).check(val.provenance, args.transnet, but=("split", "sample_num"))
    loader = opening.feature_loader(budget, Pairing(val), runtime)
    reference = (state.get("linear_reference") or {}).get("instability")
    found = {"this Trans-Net": Fitted(measure(trans_net.to(runtime.device), loader, runtime), reference)}
    for name, pairs in pairings(train, val, args.seed).items():
        runtime.say(name)
        found[name] = fit(budget, trans_net.config, *pairs, seed=args.seed + 1, runtime=runtime)
    rows = []
    for name, fitted in found.items():
        intervals = bootstrap(fitted.moments.statistic(), fitted.moments.arrays(), resamples=args.bootstrap)
        rows.append({"pairs": name, "linear_reference": fitted.linear, **asdict(intervals["instability"])})
    statistic = found["this Trans-Net"].moments.statistic()
    three = (found[name].moments.arrays() for name in ("this Trans-Net", NULL, CEILING))
    consistency = consistency_interval(statistic, *three, resamples=args.bootstrap)["consistency"]
    report = {
        "rows": rows, "consistency": asdict(consistency), "baselines": baselines(train, val, budget, runtime),
        "epochs": budget.epochs, "images": len(val), "transnet": sha256(args.transnet),
        "source": val.provenance.to_record(),
    }  # fmt: skip
    runtime.say(calibration_table(report))
    if args.json and runtime.is_main:
        write_json(args.json, report)
    if args.csv and runtime.is_main:
        write_csv(args.csv, [list(rows[0]), *(list(row.values()) for row in rows)])
    return report


if __name__ == "__main__":
    main()
