"""Fit Trans-Nets that reconstruct net B's features from net A's (paper Sec. 3).

Beside every Trans-Net stands the linear reference: the best single linear layer, in closed form. What leaves more than
that unexplained was not fitted to its end.
"""

import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from models.fitting import between, fill_trans_net
from models.layers import Layer
from models.pair import open_penultimate, read_stored
from utils import checkpoint, opening, options, runs
from utils.errors import InputError
from utils.parser import Namespace, Parser, plain_name, real, some_path
from utils.provenance import Provenance
from utils.report.maps import decomposition_figure
from utils.runtime import command
from utils.training import closed_form, reconstruction, resume
from utils.training.family import Family, Member, of_member, restore
from utils.training.schedules import due

# Options that change nothing of the fit, or say what the features say themselves.
NOT_RECORDED = ["convOut_path", "arch", "dataset", "sample_num", "conv_layer", "layer"]
NOT_RECORDED += ["validate", "draw", "save_per_epoch", "no_reference"]


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
    group.add_argument(
        "--validate", action="store_true", help="insist on val features; where they lie there, they are measured anyway"
    )
    group.add_argument(
        "--hold_out", type=real(below=1), default=0, metavar="SHARE",
        help="where no val features are: measure on this share of the images, which is not fitted",
    )  # fmt: skip
    options.add_batch_option(group, 64)
    options.add_layer_options(parser, default="the features'")
    options.add_trans_net_options(parser)
    options.add_training_options(
        parser, optim="Adam", lr=1e-4, epochs=800, fewest_epochs=0, logspace=2, decay_factor=0.2, save_epoch=100,
        val_epoch=10,
    )  # fmt: skip
    options.add_resume_options(parser)
    options.add_run_options(parser)
    options.add_output_options(parser)
    group = parser.add_argument_group("what else is kept")
    group.add_argument("--save_per_epoch", action="store_true", help="every saved epoch in a file of its own")
    group.add_argument("--draw", "--images", action="store_true", help="an image's components, in TensorBoard")
    options.add_ignored_options(parser, "--topk", "--channels")
    return parser


def find_features(args: Namespace, split: str) -> opening.Features:
    """Open the features that the options mean, and check what the options say of them."""
    layer = Layer(args.layer, args.conv_layer, args.fc, default=40)
    folder = args.convOut_path or runs.features_folder(
        args.out, options.data_name(args), args.sample_num, args.arch or options.ARCH, layer.label, args.suffix, split
    )
    said = {"arch": args.arch, "sample_num": args.sample_num or None, "layer": layer.label if layer.is_named else None}
    return opening.stored_features(args, folder, split, said)


def place(provenance: Provenance, args: Namespace, layers: int) -> Path:
    """Say where a Trans-Net is saved; what the authors' features do not say of themselves, the options say."""
    layer = Layer(args.layer, args.conv_layer, args.fc, default=40)
    known = provenance.completed(
        dataset=options.data_name(args), arch=args.arch or options.ARCH, label=layer.label, sample_num=args.sample_num
    )
    suffix = runs.join(args.suffix, f"layers{layers}" if len(args.layers) > 1 else "")
    return runs.trans_net_path(args.out, known.name or known.dataset, known.arch, known.label, known.sample_num, suffix)


def check_options(parser: Parser, args: Namespace) -> None:
    """Refuse options that contradict each other."""
    depths, orders, weights = len(args.layers), args.layers[0] - 1, len(args.alpha or [])
    if depths == 1 and args.alpha is not None and weights != orders:
        parser.error(f"--alpha has {weights} entries, --layers {orders + 1} needs {orders}, highest order first")
    if depths > 1 and args.alpha is not None and weights != 1:
        parser.error("with several --layers, --alpha has one entry, for every order of every depth")
    if not args.epochs and args.solve is None:
        parser.error("--epochs 0 leaves the Trans-Net as it is initialised, unless --solve solves its last layer")


def open_member(args: Namespace, features: opening.Features, layers: int) -> Member:
    """Make one Trans-Net, or find it where an earlier run left it."""
    own = place(features.provenance, args, layers)
    alpha = args.alpha or [0.5]
    alpha = alpha * (layers - 1) if len(alpha) == 1 else alpha
    settings = options.settings(args, but=NOT_RECORDED, layers=layers, alpha=alpha)
    source, extendable = features.provenance, not args.logspace
    resumed = resume.find(args.resume, own, settings, source=source, restart=args.restart, extendable=extendable)
    trans_net = between(
        features.shape_a, features.shape_b, layers=layers, fc=args.fc, norm=args.norm, bn=args.bn, affine=args.affine,
        fix_p=args.fix_p, standardise=args.standardise,
    )  # fmt: skip
    state = checkpoint.load(resumed) if resumed else {}
    if resumed:
        fill_trans_net(trans_net, state, resumed)
    by_order = torch.zeros(len(alpha)) if args.L2 else torch.tensor(alpha).flip(0)  # as p is
    return Member(trans_net, own, settings, by_order, resumed, state)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the step."""
    parser = build_parser()
    args = parser.parse_args(argv)
    check_options(parser, args)
    runtime = opening.start(args)
    features, val_features = find_features(args, "train"), None
    with contextlib.nullcontext() if args.validate else contextlib.suppress(InputError):
        val_features = find_features(args, "val")  # which lie beside the train features, or not
        val_features = None if val_features.folder == features.folder else val_features  # the authors' say no split
    members = [open_member(args, features, layers) for layers in args.layers]
    nets = [member.trans_net for member in members]
    family = Family(nets)
    fit = opening.fit(args, family, runtime)
    start_epoch = restore(members, fit) if args.start_epoch is None else args.start_epoch
    if members[0].resumed and start_epoch >= args.epochs:
        runtime.say(f"{members[0].path} is fitted for {start_epoch} epochs already")
        return

    fitted, held_out = opening.hold_out(features, 0 if val_features else args.hold_out)
    unseen = val_features or held_out
    loader = opening.feature_loader(args, fitted, runtime, shuffle=True)
    in_order = opening.feature_loader(args, fitted, runtime)
    unseen_loader = opening.feature_loader(args, unseen, runtime) if unseen else None
    runtime.say(
        f"{features.shape_a} → {features.shape_b}, layers {args.layers}, {len(fitted):,} images: {members[0].path}"
    )
    linear = between(features.shape_a, features.shape_b, layers=1, fc=args.fc, standardise=True).to(runtime.device)
    reconstruction.set_standards([linear] if start_epoch else [linear, *nets], in_order, read_stored, runtime)
    reference = None
    if not args.no_reference:
        reference = closed_form.linear_reference(linear, in_order, unseen_loader, read_stored, runtime)
    record = reference.record() if reference else None
    solve = partial(closed_form.solve_or_linear, nets, reference, in_order, read_stored, runtime)
    if args.solve is not None and start_epoch == 0:
        solve(last=not args.epochs)
    source = features.provenance.to_record()
    facts: dict[str, Any] = {"arch": source.get("arch"), "source": source, "linear_reference": record}
    alphas, through = [member.alpha.to(runtime.device) for member in members], None
    if args.match == "penultimate":
        through = open_penultimate(features.provenance.b, args.arch, features.shape_b).to(runtime.device)
    step = partial(reconstruction.reconstruct, family=family, alphas=alphas, read=read_stored, through=through)
    rates, left = opening.rates(args), list[float]()
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(member.log(args.out, args.epochs, start_epoch, runtime)) for member in members]
        if not args.epochs:
            left = reconstruction.instabilities(nets, unseen_loader, read_stored, runtime)
            for i, member in enumerate(members):
                member.save(fit, 0, held_out=left[i] if left else None, **facts)
        for epoch, metrics in reconstruction.epochs(
            fit, loader, step, rates, start_epoch=start_epoch, solve_every=None if through else args.solve, solve=solve
        ):
            measured = due(epoch, args.val_epoch, args.epochs)
            left = reconstruction.instabilities(nets, unseen_loader, read_stored, runtime) if measured else []
            for i, (member, log) in enumerate(zip(members, logs)):
                own = of_member(metrics, i) | {"lr": rates[epoch]}
                own |= {"linear_reference": record["instability"]} if record else {}
                own |= {"val_instability": left[i]} if left else {}
                log.write(epoch, own)
                if args.draw and measured:
                    x, target = read_stored(*runtime.to_device(features.__getitems__([0])[:2]))
                    log.figure(epoch, "components", decomposition_figure(member.trans_net.eval(), x, target))
                if due(epoch, args.save_epoch, args.epochs) or log.overdue:
                    measures = {"mse": own["MSE"], "held_out": own.get("val_instability")}
                    member.save(fit, epoch + 1, keep=args.save_per_epoch, **measures, **facts)
                    log.saved(member.path, epoch + 1)
    for i, (member, log) in enumerate(zip(members, logs)):
        errors = [line["MSE"] for line in runs.read_metrics(log.path)]
        words = reconstruction.closing_words(errors, left[i] if left else None, record)
        copies = f", every saved epoch in {member.copy_of('…').name}" if args.save_per_epoch else ""
        runtime.say(f"saved {member.path}{copies}; {words}; the log is {log.path}")
    where = [features.folder.parent] if val_features else [features.folder, "--t_or_v", "train"]
    reverse = ["--reverse"] if args.reverse else []
    trans_nets = (member.path for member in members)
    runtime.say_next("Variance.py", "--convOut_path", *where, *reverse, "--transnet", *trans_nets)


if __name__ == "__main__":
    main()
