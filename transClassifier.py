"""Refine features: tune a tail on what a Trans-Net keeps, with all else frozen (paper Sec. 4.1 and 4.3)."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from models.cut_net import CutNet, open_net
from models.frozen_feature import INPUTS, NOISE, RAW, freeze
from models.layers import Layer
from models.trans_net import TransNet, build_from_state
from utils import checkpoint, opening, options, runs
from utils.data.images import check_outputs
from utils.errors import InputError
from utils.files import sha256
from utils.normalisation import normalisation_words, recorded_normalisation
from utils.parser import Namespace, Parser, list_of, some_path, whole
from utils.provenance import NetSource, Provenance
from utils.runtime import command
from utils.training import resume
from utils.training.classification import classify, classify_features, known_hits, validate
from utils.training.engine import train_one_epoch
from utils.training.metrics import main_accuracy
from utils.training.schedules import due, set_learning_rate

# Options that say what the files say themselves; in their place stand the files' hashes and layers.
NOT_RECORDED = ["arch", "arch_A", "arch_B", "net_A", "net_B", "resume_Ys"]
NOT_RECORDED += ["conv_layer", "layer", "fc", "conv_layer2", "layer2", "normalisation1", "normalisation2"]
# Options of training that a fair baseline has too.
AS_LONG = (
    "sample_num", "sub_sampler_split", "augment", "batch_size", "epochs", "optim", "lr", "momentum",
    "weight_decay", "logspace", "epoch_step", "decay_factor", "val_epoch", "save_epoch", "seed", "amp",
)  # fmt: skip


def build_parser() -> Parser:
    """Declare this step's options."""
    parser = Parser(__doc__, "python transClassifier.py --net_A A.pth.tar --net_B B.pth.tar --resume_Ys G.pth.tar")
    group = parser.add_argument_group("networks")
    group.add_argument("-a", "--arch", help="architecture of both nets; default: the checkpoints'")
    group.add_argument("--arch_A", help="architecture of net A; overrides --arch")
    group.add_argument("--arch_B", help="architecture of net B; overrides --arch")
    group.add_argument("--net_A", type=some_path, metavar="A", help="checkpoint of the net that the Trans-Net reads")
    group.add_argument("--net_B", type=some_path, metavar="B", help="checkpoint of the net that it reconstructs")
    group.add_argument("--resume_Ys", type=some_path, metavar="FILE", help="the Trans-Net, ours or the authors'")
    options.add_layer_options(parser, default="the Trans-Net's")
    options.add_second_layer_options(parser)
    group = parser.add_argument_group("refinement")
    group.add_argument(
        "--input", choices=INPUTS, default="components",
        help="what the tail reads: components x(k), a net's raw feature, those + x_Δ, or x_B + noise as large as x_Δ",
    )  # fmt: skip
    group.add_argument(
        "--in_mode", type=list_of(whole(0)), metavar="[1,1,1]",
        help="which components are summed, from x(0) up: [1,0,0] is x(0) alone; default: all",
    )  # fmt: skip
    group.add_argument("--tail", choices=["A", "B"], help="whose layers are tuned on it; default: B's, for raw_A A's")
    # Unless augmented, all images are read once.
    options.add_data_options(parser, batch_size=64, cache_images="off", two_nets=True)
    options.add_training_options(
        parser, optim="Adam", lr=1e-5, epochs=1000, fewest_epochs=0, logspace=2, save_epoch=100, val_epoch=10
    )
    options.add_resume_options(parser)
    options.add_run_options(parser)
    options.add_output_options(parser)
    options.add_ignored_options(parser, "--fine_tune", "--modified_norm", "--topk", "--channels")
    return parser


def check_options(parser: Parser, args: Namespace) -> None:
    """Refuse options that leave out a file which the input or the tail needs, or that contradict each other."""
    options.check_layers(parser, args)
    raw = RAW.get(args.input)
    args.tail = args.tail or usual_tail(args.input)
    needed = [f"net_{raw}", f"net_{args.tail}"] if raw else ["net_A", "net_B", "resume_Ys"]
    if missing := [f"--{name}" for name in dict.fromkeys(needed) if getattr(args, name) is None]:
        parser.error(f"--input {args.input} with the tail of net {args.tail} needs {' and '.join(missing)}")
    if args.in_mode is not None and (raw or args.input == NOISE):
        parser.error(f"--in_mode chooses components of a Trans-Net, and --input {args.input} has none")


def usual_tail(name: str) -> str:
    """Say whose tail reads an input where no option does."""
    return RAW.get(name, "B")


def open_nets(args: Namespace, fitted: Provenance) -> dict[str, CutNet]:
    """Read the nets that are named, cut where the options say or else where the Trans-Net was fitted."""
    first, second = (Layer(*layer) for layer in options.both_layers(args))
    nets, hint = {}, options.second_layer_hint(args)
    if args.net_A:
        nets["A"] = open_net(args.net_A, args.arch_A or args.arch, first.or_source(fitted.a))
    if args.net_B:
        nets["B"] = open_net(args.net_B, args.arch_B or args.arch, second.or_source(fitted.b), hint)
    return nets


def select(parser: Parser, in_mode: list[int] | None, trans_net: TransNet) -> list[int]:
    """Give one 0 or 1 for each component, x(0) first."""
    in_mode = [1] * (trans_net.order + 1) if in_mode is None else in_mode
    if len(in_mode) != trans_net.order + 1 or not set(in_mode) <= {0, 1} or not any(in_mode):
        parser.error(f"--in_mode takes 1 or 0 for each of x(0) … x({trans_net.order}), some 1, not {in_mode}")
    return in_mode


def result_path(args: Namespace, nets: dict[str, CutNet], fitted: Provenance) -> Path:
    """Say where the tail is saved."""
    archs = [str(net.source.arch) for net in nets.values()]
    first, second = (Layer(*layer) for layer in options.both_layers(args))
    label = runs.pair(first.label, second.label) if first.is_named else fitted.label or first.label
    feature = runs.join(
        "" if args.input == "components" else args.input,
        "".join(map(str, args.in_mode or [])),
        "" if args.tail == usual_tail(args.input) else f"tail{args.tail}",
    )
    arch = runs.pair(archs[0], archs[-1])
    return runs.refined_path(args.out, options.data_name(args), args.sample_num, arch, feature, args.suffix, label)


def fill_tail(tail: nn.Module, path: Path, settings: dict[str, Any], source: Provenance) -> checkpoint.State:
    """Load the tail that a run goes on from, which must have been tuned on the same feature."""
    state = checkpoint.load(path)
    recorded = state.get("settings", {})
    same = all(recorded.get(name) == settings[name] for name in ("input", "in_mode", "tail", "transnet"))
    if not same or Provenance.from_record(state.get("source", {})).differs(source):
        raise InputError(f"{path} holds no tail that was tuned on this feature of these nets; use its own options")
    tail.load_state_dict(state["state_dict"])
    return state


def baseline_words(args: Namespace, parser: Parser, net: CutNet) -> list[str]:
    """Give the words that tune a net's tail as long on its own feature."""
    source, named = net.source, getattr(args, f"arch_{args.tail}") or args.arch
    words = ["--input", f"raw_{args.tail}", f"--net_{args.tail}", str(source.path), "--layer", str(source.layer)]
    words += ["--arch", named] if named else []
    given = parser.again(args, ("normalisation", "normalisation1", "normalisation2"))
    if not given and source.normalisation and not recorded_normalisation(net.state.get("data", {})):
        words += ["--normalisation", normalisation_words(source.normalisation)]  # only the Trans-Net says it
    same = (*options.IMAGES, *options.PIXELS, *AS_LONG, *options.MACHINE, "out")
    return [*words, *parser.again(args, same)]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the step."""
    parser = build_parser()
    args = parser.parse_args(argv)
    check_options(parser, args)
    runtime = opening.start(args)
    fitted, trans_net = Provenance(), None
    if args.input not in RAW:
        state = checkpoint.load(args.resume_Ys)
        trans_net = build_from_state(state, args.resume_Ys)
        fitted = Provenance.from_record(state.get("source", {}))
        args.in_mode = select(parser, args.in_mode, trans_net)
    nets = open_nets(args, fitted)
    tail, tail_state = nets[args.tail].tail, nets[args.tail].state
    options.fill(args, *(net.state.get("data", {}) for net in (nets[args.tail], *nets.values())))
    for name, net in nets.items():
        fit_of_net = getattr(fitted, name.lower())
        nets[name] = net.normalised_by(opening.normalisation(args, net.state, runtime, name, fit_of_net))
    source_a, source_b = (nets[name].source if name in nets else NetSource() for name in "AB")
    source = Provenance(source_a, source_b)
    fitted.check(source, args.resume_Ys)
    train_images, val_images = opening.both_splits(args, tail_state.get("data"))
    frozen, shape = freeze(args.input, nets, trans_net, args.in_mode or [], args.tail, opening.few_pixels(train_images))
    if args.input == "residual_added" and all(args.in_mode or []):
        runtime.say("note: all components and x_Δ add up to x_B, so this is the feature of --input raw_B")
    own = result_path(args, nets, fitted)
    settings = options.settings(args, but=NOT_RECORDED, transnet=sha256(args.resume_Ys) if trans_net else None)
    resumed = resume.find(args.resume, own, settings, source=source, restart=args.restart, extendable=not args.logspace)
    model_record = tail_state["model"]
    check_outputs(model_record["num_classes"], train_images, f"the tail of net {args.tail}")
    opening.bind(args, runtime, train_images, val_images, own=own)
    state = fill_tail(tail, resumed, settings, source) if resumed else {}
    fit = opening.fit(args, tail, runtime)
    start_epoch = opening.first_epoch(args, fit, state, resumed)
    if start_epoch < args.epochs:
        opening.check_last_batch(args, tail, train_images, runtime, shape)
    frozen_net = runtime.parallel(frozen)
    features = partial(opening.with_features, args, frozen=frozen_net, shape=shape, runtime=runtime, folder=own.parent)
    name, writes = runs.stem(own), runtime.is_main and start_epoch < args.epochs
    log_folder = runs.log_folder(args.out, own.parent.name, name)
    log = runs.RunLog(log_folder, args.epochs, start_epoch=start_epoch, active=writes)
    val_loaders = opening.validation_loaders(args, features(val_images), runtime)
    metrics = validate(fit.net, val_loaders, runtime, classify_features)
    runtime.say(f"{name} after {start_epoch} epochs of tuning: {runs.describe(metrics)}")
    if start_epoch >= args.epochs:
        return

    # The frozen nets normalise by their own constants.
    step, augment = classify_features, train_images.preprocessing(args.seed).augmented
    train_data = opening.decoded(args, train_images, runtime) if train_images.augments else features(train_images)
    loader = opening.image_loader(args, train_data, runtime, shuffle=True)
    rates, past, hits = opening.rates(args), resume.history(state, settings), known_hits(state, val_images)
    acc1, best_acc1 = float(state.get("acc1", 0)), 0.0 if resumed != own else float(state.get("best_acc1", 0))
    record = opening.data_record(args, train_images) | {"normalisation": nets[args.tail].source.normalisation}
    with log:
        for epoch in range(start_epoch, args.epochs):
            set_learning_rate(fit.optimizer, rates[epoch])
            if train_images.augments:
                step = partial(classify, preprocess=partial(augment, epoch=epoch), frozen=frozen_net)
            metrics = train_one_epoch(fit, loader, step, epoch)
            if due(epoch, args.val_epoch, args.epochs):
                metrics |= validate(fit.net, val_loaders, runtime, classify_features, hits)
                acc1 = main_accuracy(metrics, "val_")
                best_acc1 = max(acc1, best_acc1)
            log.write(epoch, metrics | {"lr": rates[epoch]})
            if runtime.is_main and (due(epoch, args.save_epoch, args.epochs) or log.overdue):
                state = fit.state(
                    epoch + 1, arch=model_record["arch"], model=model_record, source=source.to_record(),
                    data=record, settings=settings, history=past,
                    versions=resume.VERSIONS, acc1=acc1, best_acc1=best_acc1, hits=hits,
                    images=opening.images_record(train_images, val_images),
                )  # fmt: skip
                checkpoint.save(own, state)
                log.saved(own, epoch + 1)
    runtime.say(f"saved {own}, accuracy {acc1:.2f} %, best {best_acc1:.2f} %; the log is {log.path}")
    if args.input not in RAW:  # a fair baseline: the net's own feature, tuned as long
        runtime.say_next("transClassifier.py", *baseline_words(args, parser, nets[args.tail]))


if __name__ == "__main__":
    main()
