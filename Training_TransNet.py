"""Fit a Trans-Net that reconstructs net B's features from net A's (paper Sec. 3)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from models.split import as_maps
from models.trans_net import TransNet, build_from_state
from utils import checkpoint, options, runs
from utils.data.loaders import make_loader
from utils.errors import InputError
from utils.features.cache import FeatureCache, OldFeatureFolder, open_features
from utils.report.figures import component_figure
from utils.runtime import command, start
from utils.training.engine import evaluate, make_optimizer, train_one_epoch
from utils.training.losses import order_penalty
from utils.training.schedules import due, learning_rates, set_learning_rate

Features = FeatureCache | OldFeatureFolder


def build_parser() -> options.Parser:
    """Declare this step's options."""
    parser = options.Parser(__doc__)
    group = parser.add_argument_group("features")
    group.add_argument("--convOut_path", metavar="FOLDER", help="what ConvOutput.py wrote; default: by the names below")
    group.add_argument("-a", "--arch", help="architecture of the nets; default: the features'")
    group.add_argument("--dataset", help="data set; default: the features'")
    group.add_argument("--sample_num", default="", metavar="NAME", help="sub-sampler that chose the images")
    group.add_argument("--reverse", action="store_true", help="reconstruct A's features from B's")
    group.add_argument("--validate", action="store_true", help="also measure the error on the val features")
    group.add_argument("-b", "--batch_size", type=options.positive, default=64, help="images of a step, over all GPUs")
    options.add_layer_options(parser, conv_layer=None)
    group = parser.add_argument_group("Trans-Net")
    group.add_argument("--layers", type=int, default=3, help="linear layers, highest order + 1")
    group.add_argument(
        "--alpha", "--alphas", type=options.list_of(float), metavar="[0.5,0.5]",
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
    parser.add_argument("--save_per_epoch", action="store_true", help="keep every saved epoch in a file of its own")
    parser.add_argument(
        "--images", action="store_true", help="draw one image's components in TensorBoard, every --val_epoch"
    )
    options.add_run_options(parser)
    options.add_ignored_options(parser, "--topk", "--channels")
    return parser


def build_trans_net(features: Features, args: options.Namespace) -> TransNet:
    """Make the Trans-Net that fits the features' shapes."""
    x, target = (as_maps(torch.empty(1, *shape, device="meta")) for shape in (features.shape_a, features.shape_b))
    if len(features.shape_a) != len(features.shape_b):
        raise InputError(
            f"A's features have shape {features.shape_a} and B's {features.shape_b}: "
            "a Trans-Net maps feature maps to feature maps, vectors to vectors, tokens to tokens"
        )
    if args.bn and args.norm == "instance" and x.shape[2:].numel() == 1:
        raise InputError("--bn removes the mean of each map, and these features are single values; add --norm batch")
    return TransNet(
        x.shape[1],
        target.shape[1],
        args.layers,
        1 if args.fc or len(features.shape_a) < 3 else 3,
        args.norm,
        out_size=(target.shape[2], target.shape[3]),
        bn=args.bn,
        affine=args.affine,
        fix_p=args.fix_p,
    )


def find_features(args: options.Namespace, split: str = "train") -> Features:
    """Open the features that the options mean, and check what the options say of them."""
    folder = args.convOut_path or runs.features_folder(
        args.out, args.dataset or "CUB200", args.sample_num, args.arch or "vgg16_bn",
        runs.layer_label(args.layer, 40 if args.conv_layer is None else args.conv_layer, args.fc), args.suffix, split,
    )  # fmt: skip
    named = args.layer is not None or args.conv_layer is not None
    said = {
        "dataset": args.dataset,
        "arch": args.arch,
        "sample_num": args.sample_num or None,
        "layer": runs.layer_label(args.layer, args.conv_layer, args.fc) if named else None,
    }
    return open_features(
        folder, split=split, reverse=args.reverse, expected={key: value for key, value in said.items() if value}
    )


def resume(
    args: options.Namespace, own: runs.Path, source: dict[str, object], fresh: TransNet
) -> tuple[TransNet, checkpoint.State]:
    """Load what --resume names; `auto` begins anew where the checkpoint is of other features."""
    path = checkpoint.to_resume(args.resume, own)
    if own.exists():
        refuse_other_direction(own, source)
    if path is None:
        return fresh, {}
    state = checkpoint.load(path)
    trans_net = build_from_state(state, path)
    if trans_net.config != fresh.config:
        raise InputError(f"{path} holds a Trans-Net of other options or shapes: {trans_net.config}, now {fresh.config}")
    if state.get("source", source) != source:
        if args.resume != "auto":
            raise InputError(f"{path} was fitted on other features; fit a new one, or name its own --convOut_path")
        return fresh, {}
    return trans_net, state


@torch.no_grad()
def draw(trans_net: TransNet, features: Features, device: torch.device) -> Figure:
    """Draw what the first image's feature splits into, in the four channels that vary most on it."""
    x, target = (as_maps(feature).to(device) for feature in features.__getitems__([0])[:2])
    _, components = trans_net.eval().decompose(x)
    channels = target[0].flatten(1).std(1, correction=0).topk(min(4, target.shape[1])).indices
    return component_figure(None, x[0], target[0], components[:, 0], channels.tolist())


def refuse_other_direction(own: runs.Path, source: dict[str, object]) -> None:
    """Keep a fit of B → A from replacing the one of A → B, which has the same name."""
    fitted = checkpoint.load(own).get("source", {})
    if fitted.get("checkpoint_a") == source.get("checkpoint_b") != source.get("checkpoint_a"):
        raise InputError(f"{own} holds the Trans-Net of the other direction; give this one a --suffix of its own")


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the step."""
    parser = build_parser()
    args = parser.parse_args(argv)
    alpha = [0.5] * (args.layers - 1) if args.alpha is None else args.alpha
    if args.layers < 1 or len(alpha) != args.layers - 1:
        parser.error(
            f"--alpha has {len(alpha)} entries, --layers {args.layers} needs {args.layers - 1}, highest order first"
        )
    runtime = start(args.device_ids, args.gpu, args.seed, args.amp, args.compile)
    features = find_features(args)
    source = features.record
    dataset, arch = source.get("dataset", args.dataset or "CUB200"), source.get("arch", args.arch or "vgg16_bn")
    label = source.get("layer") or runs.layer_label(args.layer, args.conv_layer or 40, args.fc)
    sample_num = source.get("sample_num", args.sample_num)

    own = runs.trans_net_path(args.out, dataset, arch, label, sample_num, args.suffix)
    trans_net, state = resume(args, own, source, build_trans_net(features, args))
    net = runtime.parallel(trans_net)
    optimizer = make_optimizer(
        args.optim, trans_net.parameters(), lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay
    )
    scaler = runtime.grad_scaler()
    start_epoch = checkpoint.restore_training(state, args.resume, optimizer, scaler) if state else 0
    start_epoch = start_epoch if args.start_epoch is None else args.start_epoch
    if start_epoch >= args.epochs:
        runtime.say(f"{own} is fitted for {start_epoch} epochs already")
        return

    penalty_weights = torch.zeros(len(alpha)) if args.L2 else torch.tensor(alpha).flip(0)  # by order, as p is
    penalty_weights = penalty_weights.to(runtime.device)

    def reconstruct(
        net: nn.Module, x: Tensor, target: Tensor, _targets: Tensor, _indices: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """MSE(g(x), x*) + Σ alpha_k p(k)² (paper Eq. 2), for a batch of cached features (N, …)."""
        mse = F.mse_loss(net(as_maps(x)).float(), as_maps(target))
        penalty = order_penalty(trans_net.p, penalty_weights)
        orders = {f"p{k}": p for k, p in enumerate(trans_net.p, start=1)}
        return mse + penalty, {"MSE": mse, "L2_loss": penalty, **orders}

    def loader(data: Features, shuffle: bool) -> options.Loader:
        return make_loader(
            data, max(1, args.batch_size // runtime.world_size), shuffle=shuffle, seed=args.seed,
            # On the CPU the maps are read as fast by the process that computes on them.
            workers=args.workers if runtime.device.type == "cuda" else 0,
            rank=runtime.rank, world_size=runtime.world_size, pin=runtime.device.type == "cuda",
        )  # fmt: skip

    train_loader = loader(features, shuffle=True)
    val_loader = loader(find_features(args, "val"), shuffle=False) if args.validate else None
    rates = learning_rates(
        args.lr, args.epochs, logspace=args.logspace, epoch_step=args.epoch_step, decay_factor=args.decay_factor
    )
    name = own.name.removeprefix("checkpoint_").removesuffix(".pth.tar")
    log_folder = runs.log_folder(args.out, runs.join(dataset, arch), name)
    log = runs.RunLog(log_folder, args.epochs, start_epoch=start_epoch, active=runtime.is_main)
    direction = "B → A" if args.reverse else "A → B"
    runtime.say(
        f"Trans-Net {features.shape_a} → {features.shape_b} ({direction}) with {args.layers} layers "
        f"on {len(features):,} images of {dataset}, {arch}, layer {label}"
    )
    for epoch in range(start_epoch, args.epochs):
        set_learning_rate(optimizer, rates[epoch])
        metrics = train_one_epoch(
            net, train_loader, reconstruct, optimizer, scaler, runtime, epoch=epoch, print_freq=args.print_freq
        )
        if val_loader and due(epoch, args.val_epoch, args.epochs):
            metrics["val_MSE"] = evaluate(net, val_loader, reconstruct, runtime)["MSE"]
        log.write(epoch, metrics | {"lr": rates[epoch]})
        if args.images and due(epoch, args.val_epoch, args.epochs):
            log.figure(epoch, "components", draw(trans_net, features, runtime.device))
        if runtime.is_main and due(epoch, args.save_epoch, args.epochs):
            state = checkpoint.training_state(
                trans_net, optimizer, scaler, epoch + 1, arch=arch, trans_net=trans_net.config, alpha=alpha,
                source=source, seed=args.seed, mse=metrics["MSE"],
            )  # fmt: skip
            checkpoint.save(own, state)
            if args.save_per_epoch:
                checkpoint.save(own.with_name(f"checkpoint_{name}_epoch{epoch + 1}.pth.tar"), state)
    log.close()
    runtime.say(f"saved {own}")


if __name__ == "__main__":
    main()
