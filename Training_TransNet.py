"""Fit a Trans-Net that reconstructs net B's features from net A's (paper Sec. 3)."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from models.fitting import between, fill_trans_net
from models.split import Layer, as_maps
from models.trans_net import TransNet
from utils import checkpoint, opening, options, runs
from utils.features.cache import FeatureCache, OldFeatureFolder, open_features
from utils.parser import Namespace, Parser, list_of, plain_name, real, some_path, whole
from utils.provenance import Provenance
from utils.report.figures import component_figure
from utils.runtime import command
from utils.training import resume
from utils.training.engine import evaluate, train_one_epoch
from utils.training.losses import order_penalty
from utils.training.schedules import due, set_learning_rate

Features = FeatureCache | OldFeatureFolder
# Options that change nothing of the fit, or say what the features say themselves.
NOT_RECORDED = (
    "convOut_path", "arch", "dataset", "sample_num", "conv_layer", "layer", "validate", "draw", "save_per_epoch",
)  # fmt: skip


def build_parser() -> Parser:
    """Declare this step's options."""
    parser = Parser(__doc__, "python Training_TransNet.py --convOut_path convOuts/… --alpha [0.1,0.1]")
    group = parser.add_argument_group("features")
    group.add_argument(
        "--convOut_path", type=some_path, metavar="FOLDER", help="what ConvOutput.py wrote; default: by these names"
    )
    group.add_argument("-a", "--arch", help="architecture of the nets; default: the features'")
    group.add_argument("--dataset", type=plain_name, help="data set; default: the features'")
    group.add_argument(
        "--sample_num", type=plain_name, default="", metavar="NAME", help="sub-sampler that chose the images"
    )
    group.add_argument("--reverse", action="store_true", help="reconstruct A's features from B's")
    group.add_argument("--validate", action="store_true", help="also measure the error on the val features")
    options.add_batch_option(group, 64)
    options.add_layer_options(parser, default="the features'")
    group = parser.add_argument_group("Trans-Net")
    group.add_argument("--layers", type=whole(1), default=3, help="linear layers, highest order + 1")
    group.add_argument(
        "--alpha", "--alphas", type=list_of(real(), empty=True), metavar="[0.5,0.5]",
        help="weight of p² in the loss, from the highest order down (default: 0.5 for each)",
    )  # fmt: skip
    group.add_argument("--L2", action="store_true", help="no penalty on p at all")
    group.add_argument("--fix_p", action="store_true", help="keep every p at 0.5")
    group.add_argument(
        "--norm", choices=["instance", "batch"], default="instance", help="Σ: of each map, or over images"
    )
    group.add_argument(
        "--modified_norm", dest="norm", action="store_const", const="batch", help="old name of --norm batch"
    )
    group.add_argument("--bn", action="store_true", help="input through Instance/BatchNorm instead of scaling alone")
    group.add_argument("--affine", action="store_true", help="with learned weights in that norm")
    options.add_training_options(
        parser, optim="Adam", lr=1e-4, epochs=800, logspace=2, decay_factor=0.2, save_epoch=100, val_epoch=10
    )
    options.add_resume_options(parser)
    options.add_run_options(parser)
    options.add_output_options(parser)
    group = parser.add_argument_group("what else is kept")
    group.add_argument("--save_per_epoch", action="store_true", help="every saved epoch in a file of its own")
    group.add_argument(
        "--draw", "--images", action="store_true",
        help="one image's components in TensorBoard, every --val_epoch epochs",
    )  # fmt: skip
    options.add_ignored_options(parser, "--topk", "--channels")
    return parser


def find_features(args: Namespace, split: str) -> Features:
    """Open the features that the options mean, and check what the options say of them."""
    layer = Layer(args.layer, args.conv_layer, args.fc, default=40)
    label = layer.label if layer.is_named else None
    folder = args.convOut_path or runs.features_folder(
        args.out, options.data_name(args), args.sample_num, args.arch or options.ARCH, layer.label, args.suffix, split
    )
    said = {"dataset": args.dataset, "arch": args.arch, "sample_num": args.sample_num, "layer": label}
    expected = {key: value for key, value in said.items() if value}
    return open_features(folder, split=split, reverse=args.reverse, expected=expected)


def place(provenance: Provenance, args: Namespace) -> Path:
    """Say where the Trans-Net is saved; what the authors' features do not say of themselves, the options say."""
    layer = Layer(args.layer, args.conv_layer, args.fc, default=40)
    known = provenance.completed(
        dataset=options.data_name(args), arch=args.arch or options.ARCH, label=layer.label, sample_num=args.sample_num
    )
    dataset = known.name or known.dataset
    return runs.trans_net_path(args.out, dataset, known.arch, known.label, known.sample_num, args.suffix)


def reconstruct(
    net: nn.Module, x: Tensor, target: Tensor, _targets: Tensor, _indices: Tensor, *, trans_net: TransNet, alpha: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """MSE(g(x), x*) + Σ alpha_k p(k)² (paper Eq. 2), for a batch of cached features (N, …)."""
    mse = F.mse_loss(net(as_maps(x)).float(), as_maps(target))
    penalty = order_penalty(trans_net.p, alpha)
    orders = {f"p{k}": p for k, p in enumerate(trans_net.p, start=1)}
    return mse + penalty, {"MSE": mse, "L2_loss": penalty, **orders}


@torch.no_grad()
def draw(trans_net: TransNet, features: Features, device: torch.device) -> Figure:
    """Draw what the first image's feature splits into, in the four channels that vary most on it."""
    x, target = (as_maps(feature).to(device) for feature in features.__getitems__([0])[:2])
    _, components = trans_net.eval().decompose(x)
    channels = target[0].flatten(1).std(1, correction=0).topk(min(4, target.shape[1])).indices
    return component_figure(None, x[0], target[0], components[:, 0], channels.tolist())


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the step."""
    parser = build_parser()
    args = parser.parse_args(argv)
    orders = args.layers - 1
    args.alpha = [0.5] * orders if args.alpha is None else args.alpha
    if len(args.alpha) != orders:
        parser.error(
            f"--alpha has {len(args.alpha)} entries, --layers {args.layers} needs {orders}, highest order first"
        )
    runtime = opening.start(args)
    features = find_features(args, "train")
    val_features = find_features(args, "val") if args.validate else None
    source = features.provenance
    own = place(source, args)
    settings = options.settings(args, but=NOT_RECORDED)
    resumed = resume.find(args.resume, own, settings, source=source, restart=args.restart, extendable=not args.logspace)
    trans_net = between(
        features.shape_a, features.shape_b, layers=args.layers, fc=args.fc, norm=args.norm, bn=args.bn,
        affine=args.affine, fix_p=args.fix_p,
    )  # fmt: skip
    state = checkpoint.load(resumed) if resumed else {}
    if resumed:
        fill_trans_net(trans_net, state, resumed)
    fit = opening.fit(args, trans_net, runtime)
    start_epoch = opening.first_epoch(args, fit, state, resumed)
    if start_epoch >= args.epochs:
        runtime.say(f"{resumed} is fitted for {start_epoch} epochs already")
        return

    alpha = torch.zeros(len(args.alpha)) if args.L2 else torch.tensor(args.alpha).flip(0)  # by order, as p is
    step = partial(reconstruct, trans_net=trans_net, alpha=alpha.to(runtime.device))
    loader = opening.feature_loader(args, features, runtime, shuffle=True)
    rates, past = opening.rates(args), resume.history(state, settings)
    name = own.name.removeprefix("checkpoint_").removesuffix(".pth.tar")
    direction = "B → A" if args.reverse else "A → B"
    runtime.say(
        f"{direction}, {features.shape_a} → {features.shape_b}, {args.layers} layers, {len(features):,} images: {own}"
    )
    log_folder = runs.log_folder(args.out, own.parent.name, name)
    with runs.RunLog(log_folder, args.epochs, start_epoch=start_epoch, active=runtime.is_main) as log:
        for epoch in range(start_epoch, args.epochs):
            set_learning_rate(fit.optimizer, rates[epoch])
            metrics = train_one_epoch(fit, loader, step, epoch)
            if val_features and due(epoch, args.val_epoch, args.epochs):
                val_loader = opening.feature_loader(args, val_features, runtime)
                metrics["val_MSE"] = evaluate(fit.net, val_loader, step, runtime)["MSE"]
            log.write(epoch, metrics | {"lr": rates[epoch]})
            if args.draw and due(epoch, args.val_epoch, args.epochs):
                log.figure(epoch, "components", draw(trans_net, features, runtime.device))
            if runtime.is_main and due(epoch, args.save_epoch, args.epochs):
                state = fit.state(
                    epoch + 1, arch=source.arch, trans_net=trans_net.config, source=source.to_record(),
                    settings=settings, history=past, versions=resume.VERSIONS, mse=metrics["MSE"],
                )  # fmt: skip
                checkpoint.save(own, state)
                if args.save_per_epoch:
                    checkpoint.save(own.with_name(f"checkpoint_{name}_epoch{epoch + 1}.pth.tar"), state)
    runtime.say(f"saved {own}")


if __name__ == "__main__":
    main()
