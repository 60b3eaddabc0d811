"""Refine features: tune a tail on what a Trans-Net keeps, with all else frozen (paper Sec. 4.1 and 4.3)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from models.frozen_feature import INPUTS, RAW, Net, freeze, open_net
from models.trans_net import TransNet, build_from_state
from utils import checkpoint, options, runs
from utils.data.batches import normalise
from utils.data.computed_once import compute_once
from utils.data.images import ImageData, check_classes
from utils.errors import InputError
from utils.files import sha256
from utils.runtime import Runtime, command, start
from utils.training.classification import classify_features, data_record, validate
from utils.training.engine import make_optimizer, train_one_epoch
from utils.training.metrics import main_accuracy
from utils.training.schedules import due, learning_rates, set_learning_rate

StepResult = tuple[Tensor, dict[str, Tensor]]


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


def check_options(parser: options.Parser, args: options.Namespace) -> None:
    """Refuse options that leave out a file which the input or the tail needs, or that contradict each other."""
    raw = RAW.get(args.input)
    needed = [f"net_{raw}", f"net_{args.tail}"] if raw else ["net_A", "net_B", "resume_Ys"]
    if missing := [f"--{name}" for name in dict.fromkeys(needed) if getattr(args, name) is None]:
        parser.error(f"--input {args.input} with the tail of net {args.tail} needs {' and '.join(missing)}")
    if raw and args.in_mode is not None:
        parser.error(f"--in_mode chooses components of a Trans-Net, and --input {args.input} has none")


def open_nets(args: options.Namespace) -> tuple[dict[str, Net], dict[str, Any]]:
    """Read the nets that are named, cut at their layers, and say what they are."""
    nets: dict[str, Net] = {}
    source: dict[str, Any] = {}
    for name, path, arch, layer in (
        ("A", args.net_A, args.arch_A, options.first_layer(args)),
        ("B", args.net_B, args.arch_B, options.second_layer(args)),
    ):
        if path:
            nets[name] = open_net(path, arch or args.arch, layer)
            source |= {f"checkpoint_{name.lower()}": sha256(path), f"layer_{name.lower()}": nets[name].layer}
    return nets, source


def open_trans_net(path: str, source: dict[str, Any], runtime: Runtime) -> TransNet:
    """Read the Trans-Net and compare what it was fitted on with this run's nets and layers."""
    state = checkpoint.load(path)
    fitted = source | state.get("source", {})  # the authors' files do not say
    keys = ("checkpoint_a", "checkpoint_b")
    swapped = [fitted[key] for key in keys] == [source[key] for key in reversed(keys)]
    if swapped and source["checkpoint_a"] != source["checkpoint_b"]:
        raise InputError(f"{path} reconstructs A's features from B's (--reverse): exchange --net_A and --net_B")
    for net in "ab":
        layer, expected = source[f"layer_{net}"], fitted[f"layer_{net}"]
        if layer != expected:
            raise InputError(f"{path} was fitted at {expected} of net {net.upper()}, this run names {layer}")
        if source[f"checkpoint_{net}"] != fitted[f"checkpoint_{net}"]:
            runtime.say(f"note: {path} was fitted on another net {net.upper()} than this one")
    return build_from_state(state, path)


def select(parser: options.Parser, in_mode: list[int] | None, trans_net: TransNet) -> list[int]:
    """Give one 0 or 1 for each component, x(0) first."""
    in_mode = [1] * (trans_net.order + 1) if in_mode is None else in_mode
    if len(in_mode) != trans_net.order + 1 or not set(in_mode) <= {0, 1} or not any(in_mode):
        parser.error(f"--in_mode takes 1 or 0 for each of x(0) … x({trans_net.order}), some 1, not {in_mode}")
    return in_mode


def result_path(args: options.Namespace, nets: dict[str, Net], in_mode: list[int]) -> runs.Path:
    """Say where the tail is saved."""
    archs = [net.state["model"]["arch"] for net in nets.values()]
    layers = [runs.layer_label(*layer) for layer in (options.first_layer(args), options.second_layer(args))]
    feature = runs.join(
        "" if args.input == "components" else args.input,
        "".join(map(str, in_mode)),
        "" if args.tail == usual_tail(args.input) else f"tail{args.tail}",
    )
    arch = runs.pair(archs[0], archs[-1])
    return runs.refined_path(args.out, args.dataset, args.sample_num, arch, feature, args.suffix, runs.pair(*layers))


def usual_tail(name: str) -> str:
    """Say whose tail reads an input where no option does."""
    return RAW.get(name, "B")


def resume(args: options.Namespace, own: runs.Path, source: dict[str, Any], tail: nn.Module) -> checkpoint.State:
    """Load what --resume names into the tail; `auto` begins anew where the checkpoint is of another feature."""
    path = checkpoint.to_resume(args.resume, own)
    if path is None:
        return {}
    state = checkpoint.load(path)
    if state.get("source") != source:
        if args.resume != "auto":
            raise InputError(f"{path} holds no tail that was tuned on this feature of these nets; use its own options")
        return {}
    tail.load_state_dict(state["state_dict"])
    return state


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the step."""
    parser = build_parser()
    args = parser.parse_args(argv)
    args.tail = args.tail or usual_tail(args.input)
    check_options(parser, args)
    runtime = start(args.device_ids, args.gpu, args.seed, args.amp, args.compile)
    nets, source = open_nets(args)
    trans_net: TransNet | None = None
    in_mode: list[int] = []
    if args.input not in RAW:
        trans_net = open_trans_net(args.resume_Ys, source, runtime)
        in_mode = select(parser, args.in_mode, trans_net)
        source["transnet"] = sha256(args.resume_Ys)
    source |= {"input": args.input, "in_mode": in_mode, "tail": args.tail}
    tail, tail_state = nets[args.tail].tail, nets[args.tail].state
    options.fill_from_checkpoint(args, tail_state)
    frozen, shape = freeze(args.input, nets, trans_net, in_mode, args.tail, args.image_size)

    own = result_path(args, nets, in_mode)
    name = own.name.removeprefix("checkpoint_").removesuffix(".pth.tar")
    state = resume(args, own, source, tail)
    net, frozen_net = runtime.parallel(tail), runtime.parallel(frozen)

    def features_of(images: Tensor) -> Tensor:
        """Give the fixed feature (N, *shape) of images uint8 (N, 3, S, S)."""
        return frozen_net(normalise(images))

    def classify_anew(net: nn.Module, images: Tensor, targets: Tensor, indices: Tensor) -> StepResult:
        """Classify images that are augmented, so that their feature differs from epoch to epoch."""
        return classify_features(net, features_of(images), targets, indices)

    def with_features(images: ImageData) -> ImageData:
        """Compute the feature of every image once, and let batches hold it in place of the pixels."""
        loader = options.image_loader(args, images, runtime)
        label = f"{images.split} features {shape}"
        return images.with_stored(compute_once(features_of, loader, shape, runtime, folder=own.parent, label=label))

    val_images = options.open_images(args, "val", runtime)
    classes = val_images.classes
    check_classes(tail_state.get("data", {}).get("classes", classes), classes, "the validation images")
    model_record = tail_state["model"]
    if model_record["num_classes"] != len(classes):
        raise InputError(
            f"the tail of net {args.tail} has {model_record['num_classes']} classes, the images have {len(classes)}; "
            "use a net that was trained on such classes"
        )
    val_loaders = options.validation_loaders(args, with_features(val_images), runtime)
    optimizer = make_optimizer(
        args.optim, tail.parameters(), lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay
    )
    scaler = runtime.grad_scaler()
    start_epoch = checkpoint.restore_training(state, args.resume, optimizer, scaler) if state else 0
    start_epoch = start_epoch if args.start_epoch is None else args.start_epoch
    metrics = validate(net, val_loaders, runtime, classify_features)
    runtime.say(f"{name} after {start_epoch} epochs of tuning: {runs.describe(metrics)}")
    if start_epoch >= args.epochs:
        return

    train_images = options.open_images(args, "train", runtime)
    check_classes(classes, train_images.classes, "the training images")
    augments = train_images.augments
    train_data, step = (train_images, classify_anew) if augments else (with_features(train_images), classify_features)
    train_loader = options.image_loader(args, train_data, runtime, shuffle=True)
    rates = learning_rates(
        args.lr, args.epochs, logspace=args.logspace, epoch_step=args.epoch_step, decay_factor=args.decay_factor
    )
    log_folder = runs.log_folder(args.out, own.parent.name, name)
    log = runs.RunLog(log_folder, args.epochs, start_epoch=start_epoch, active=runtime.is_main)
    acc1, best_acc1 = (float(state.get(key, 0)) for key in ("acc1", "best_acc1"))
    for epoch in range(start_epoch, args.epochs):
        set_learning_rate(optimizer, rates[epoch])
        metrics = train_one_epoch(
            net, train_loader, step, optimizer, scaler, runtime, epoch=epoch, print_freq=args.print_freq
        )
        if due(epoch, args.val_epoch, args.epochs):
            metrics |= validate(net, val_loaders, runtime, classify_features)
            acc1 = main_accuracy(metrics, "val_")
            best_acc1 = max(acc1, best_acc1)
        log.write(epoch, metrics | {"lr": rates[epoch]})
        if runtime.is_main and due(epoch, args.save_epoch, args.epochs):
            state = checkpoint.training_state(
                tail, optimizer, scaler, epoch + 1,
                arch=model_record["arch"], model=model_record, source=source, seed=args.seed,
                acc1=acc1, best_acc1=best_acc1,
                data=data_record(args.dataset, args.sample_num, classes, args.image_size),
            )  # fmt: skip
            checkpoint.save(own, state)
    log.close()
    runtime.say(f"saved {own}, accuracy {acc1:.2f} %, best {best_acc1:.2f} %")


if __name__ == "__main__":
    main()
