"""Refine features: tune a tail on what a Trans-Net keeps, the nets and the Trans-Net frozen (paper Sec. 4.1, 4.3)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from models.refinement import INPUTS, RAW, Net, freeze, open_net
from models.trans_net import TransNet, build_from_state
from utils import checkpoint, options, runs
from utils.classification import classify_features, data_record, validate
from utils.constant_work import compute_once
from utils.data import ImageData, check_classes, normalise
from utils.engine import make_optimizer, train_one_epoch
from utils.errors import InputError
from utils.files import sha256
from utils.metrics import main_accuracy
from utils.runtime import Runtime, command, start
from utils.schedules import due, learning_rates, set_learning_rate


def build_parser() -> options.Parser:
    """Declare this step's options."""
    parser = options.Parser(__doc__)
    group = parser.add_argument_group("networks")
    group.add_argument("-a", "--arch", help="architecture of both nets; default: the checkpoints'")
    group.add_argument("--arch_A", help="architecture of net A; overrides --arch")
    group.add_argument("--arch_B", help="architecture of net B; overrides --arch")
    group.add_argument("--net_A", metavar="A", help="checkpoint of the net whose feature the Trans-Net reads")
    group.add_argument("--net_B", metavar="B", help="checkpoint of the net whose feature it reconstructs")
    group.add_argument("--resume_Ys", metavar="FILE", help="the Trans-Net, ours or the authors'")
    options.add_layer_options(parser, conv_layer=30)
    options.add_second_layer_options(parser)
    group = parser.add_argument_group("refinement")
    group.add_argument(
        "--input", choices=INPUTS, default="components",
        help="what the tail reads: components x(k), a net's raw feature, or components + x_Δ (A's blind spots)",
    )  # fmt: skip
    group.add_argument(
        "--in_mode", type=options.list_of(int), metavar="[1,1,1]",
        help="which components are summed, from x(0) up: [1,0,0] is x(0) alone; default: all",
    )  # fmt: skip
    group.add_argument("--tail", choices=["A", "B"], help="whose layers are tuned on it; default: B's, for raw_A A's")
    options.add_data_options(parser, batch_size=64)
    options.add_training_options(parser, optim="Adam", lr=1e-5, epochs=1000, logspace=2, save_epoch=100, val_epoch=10)
    options.add_run_options(parser)
    options.add_ignored_options(parser, "--fine_tune", "--modified_norm", "--topk", "--channels")
    parser.set_defaults(cache_images="off")  # without augmentation every photo is read once
    return parser


def check_files(parser: options.Parser, args: options.Namespace) -> None:
    """Refuse options that leave out what the input or the tail needs."""
    needed = ["net_A", "net_B", "resume_Ys"]
    if args.input in RAW:
        needed = [f"net_{RAW[args.input]}", f"net_{args.tail}"]
        if args.in_mode:
            parser.error(f"--in_mode chooses components of a Trans-Net, and --input {args.input} has none")
    if missing := [f"--{name}" for name in dict.fromkeys(needed) if getattr(args, name) is None]:
        parser.error(f"--input {args.input} with the tail of net {args.tail} needs {' and '.join(missing)}")


def open_trans_net(
    parser: options.Parser, args: options.Namespace, source: dict[str, str], runtime: Runtime
) -> tuple[TransNet, list[int]]:
    """Read the Trans-Net, compare its origin with this run's nets, and give it with the whole --in_mode."""
    state = checkpoint.load(args.resume_Ys)
    trans_net, fitted = build_from_state(state, args.resume_Ys), state.get("source", {})
    nets = [source["checkpoint_a"], source["checkpoint_b"]]
    fitted_nets = [fitted.get(key, source[key]) for key in ("checkpoint_a", "checkpoint_b")]
    if fitted_nets != nets and fitted_nets == nets[::-1]:
        raise InputError(f"{args.resume_Ys} was fitted from B to A (--reverse): exchange --net_A and --net_B")
    for net in "ab":
        if fitted.get(f"layer_{net}", source[f"layer_{net}"]) != source[f"layer_{net}"]:
            raise InputError(
                f"{args.resume_Ys} was fitted at {fitted[f'layer_{net}']} of net {net.upper()}, this run names "
                f"{source[f'layer_{net}']}; correct --conv_layer or --layer"
            )
        if fitted.get(f"checkpoint_{net}", source[f"checkpoint_{net}"]) != source[f"checkpoint_{net}"]:
            runtime.say(f"note: {args.resume_Ys} was fitted on another net {net.upper()} than this one")

    in_mode = args.in_mode or [1] * (trans_net.order + 1)
    if len(in_mode) != trans_net.order + 1 or not set(in_mode) <= {0, 1} or not any(in_mode):
        parser.error(
            f"--in_mode of this Trans-Net has {trans_net.order + 1} entries, 1 for each x(k) that is summed and 0 for "
            f"the others, not {in_mode}"
        )
    return trans_net, in_mode


def resume(args: options.Namespace, own: runs.Path, source: dict[str, Any], tail: nn.Module) -> checkpoint.State:
    """Load what --resume names into the tail; `auto` begins anew where the checkpoint is of another feature."""
    path = checkpoint.to_resume(args.resume, own)
    if path is None:
        return {}
    state = checkpoint.load(path)
    if state.get("source") != source:
        if args.resume != "auto":
            raise InputError(f"{path} holds no tail that was tuned on this feature of these nets; name its own files")
        return {}
    tail.load_state_dict(state["state_dict"])
    return state


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the step."""
    parser = build_parser()
    args = parser.parse_args(argv)
    args.tail = args.tail or RAW.get(args.input, "B")
    check_files(parser, args)
    runtime = start(args.device_ids, args.gpu, args.seed, args.amp, args.compile)
    nets: dict[str, Net] = {}
    labels: list[str] = []
    source: dict[str, Any] = {"input": args.input, "tail": args.tail}
    for net, path, arch, layer in (
        ("A", args.net_A, args.arch_A, options.first_layer(args)),
        ("B", args.net_B, args.arch_B, options.second_layer(args)),
    ):
        if path:
            nets[net] = open_net(path, arch or args.arch, layer)
            labels.append(runs.layer_label(*layer))
            source |= {f"checkpoint_{net.lower()}": sha256(path), f"layer_{net.lower()}": nets[net].layer}
    trans_net, in_mode = None, []
    if args.input not in RAW:
        trans_net, in_mode = open_trans_net(parser, args, source, runtime)
        source |= {"transnet": sha256(args.resume_Ys), "in_mode": in_mode}
    model_record, trained_on = (nets[args.tail].state.get(key, {}) for key in ("model", "data"))
    options.fill_from_checkpoint(args, nets[args.tail].state)
    orders = [k for k, chosen in enumerate(in_mode) if chosen]
    frozen, shape = freeze(args.input, nets, trans_net, orders, args.tail, args.image_size)
    tail = nets[args.tail].tail

    archs = [net.state["model"]["arch"] for net in nets.values()]
    arch, label = runs.pair(archs[0], archs[-1]), runs.pair(labels[0], labels[-1])
    feature = runs.join(
        "" if args.input == "components" else args.input, "".join(map(str, in_mode)),
        "" if args.tail == RAW.get(args.input, "B") else f"tail{args.tail}",
    )  # fmt: skip
    own = runs.refined_path(args.out, args.dataset, args.sample_num, arch, feature, args.suffix, label)
    state = resume(args, own, source, tail)
    net = runtime.parallel(tail)
    frozen_net = runtime.parallel(frozen)

    def features_of(images: Tensor) -> Tensor:
        """Give the frozen part's feature (N, *shape) of images uint8 (N, 3, S, S)."""
        return frozen_net(normalise(images))

    def classify_anew(net: nn.Module, images: Tensor, targets: Tensor, indices: Tensor) -> StepResult:
        """Classify images whose feature differs from epoch to epoch, because they are augmented."""
        return classify_features(net, features_of(images), targets, indices)

    def with_features(images: ImageData) -> ImageData:
        """Compute the feature of every image once, in place of its pixels."""
        loader = options.image_loader(args, images, runtime)
        label = f"{images.split} features {shape}"
        return images.with_stored(compute_once(features_of, loader, shape, runtime, folder=own.parent, label=label))

    val_images = options.open_images(args, "val", runtime)
