"""Fit Trans-Nets that reconstruct net B's features from net A's (paper Sec. 3).

Beside every Trans-Net stands the linear reference: the best single linear layer, in closed form. What leaves more than
that unexplained was not fitted to its end.
"""

import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from models.fitting import between, fill_trans_net
from models.layers import Layer
from models.pair import open_penultimate, read_stored
from utils import checkpoint, fit_options, opening, options, runs
from utils.errors import InputError
from utils.features.source import Source, hold_out
from utils.fit_options import Kind
from utils.parser import Namespace, Parser
from utils.report.maps import decomposition_figure
from utils.runtime import Runtime, command, seed_everything
from utils.training import closed_form, reconstruction, resume
from utils.training.closed_form import Direction
from utils.training.family import Family, Member, of_member, restore
from utils.training.schedules import due


def build_parser() -> Parser:
    """Declare this step's options."""
    parser = Parser(__doc__, "python Training_TransNet.py --convOut_path convOuts/… --alpha [0.1,0.1]")
    fit_options.add_source_options(parser)
    fit_options.add_family_options(parser)
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


def open_stored(args: Namespace, split: str) -> Source:
    """Open the stored features that the options mean, and check what the options say of them."""
    layer = Layer(args.layer, args.conv_layer, args.fc, default=fit_options.DEFAULT_LAYER)
    folder = args.convOut_path or runs.features_folder(
        args.out, options.data_name(args), args.sample_num, args.arch or options.ARCH, layer.label, args.suffix, split
    )
    said = {"arch": args.arch, "sample_num": args.sample_num or None, "layer": layer.label if layer.is_named else None}
    data = opening.stored_features(Namespace(**vars(args) | {"reverse": False}), folder, split, said)
    return Source(data, read_stored, (data.shape_a, data.shape_b), data.provenance)


def open_sources(args: Namespace) -> tuple[Source, Source | None]:
    """Open what is fitted, and what it is measured on if that lies there."""
    fitted, unseen = open_stored(args, "train"), None
    with contextlib.nullcontext() if args.validate else contextlib.suppress(InputError):
        unseen = open_stored(args, "val")
        unseen = None if unseen.folder == fitted.folder else unseen  # the authors' say no split
    return fitted, unseen


def open_member(args: Namespace, kind: Kind, source: Source) -> Member:
    """Make one Trans-Net, as its seed initialises it, or find it where an earlier run left it."""
    layer = Layer(args.layer, args.conv_layer, args.fc, default=fit_options.DEFAULT_LAYER)
    known = source.provenance.completed(
        dataset=options.data_name(args), arch=args.arch or options.ARCH, label=layer.label, sample_num=args.sample_num
    )
    own, settings = fit_options.place(args, kind, known), fit_options.settings(args, kind)
    resumed = resume.find(
        args.resume, own, settings, source=source.provenance, restart=args.restart, extendable=not args.logspace
    )
    seed_everything(kind.seed)
    trans_net = between(
        *source.shapes, layers=kind.layers, fc=args.fc, norm=args.norm, bn=args.bn, affine=args.affine,
        fix_p=args.fix_p, standardise=args.standardise,
    )  # fmt: skip
    state = checkpoint.load(resumed) if resumed else {}
    if resumed:
        fill_trans_net(trans_net, state, resumed)
    weights = settings["alpha"]
    by_order = torch.zeros(len(weights)) if args.L2 else torch.tensor(weights).flip(0)  # as p is
    return Member(trans_net, own, settings, by_order, resumed, state, kind.reverse, source.provenance)


def give_next(
    args: Namespace, members: Sequence[Member], features: Source, val_features: Source | None, runtime: Runtime
) -> None:
    """Print the commands that measure what was fitted: of each direction, the Trans-Nets of the first seed."""
    folder = features.folder or Path()
    where = [folder.parent] if val_features else [folder, "--t_or_v", "train"]
    seed = members[0].settings["initial_seed"]
    for reverse in dict.fromkeys(member.reverse for member in members):
        kind = {"reverse": reverse, "initial_seed": seed}
        trans_nets = [member.path for member in members if member.settings | kind == member.settings]
        runtime.say_next("Variance.py", "--convOut_path", *where, *["--reverse"] * reverse, "--transnet", *trans_nets)


def open_throughs(args: Namespace, sources: dict[bool, Source], runtime: Runtime) -> list[nn.Module | None]:
    """Open what of the target is matched, and what of x in the reverse direction; None: they themselves."""
    if args.match == "feature":
        return [None, None]
    found = {
        reverse: open_penultimate(source.provenance.b, args.arch, source.shapes[1]).to(runtime.device)
        for reverse, source in sources.items()
    }
    return [found.get(False), found.get(True)]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the step."""
    parser = build_parser()
    args = parser.parse_args(argv)
    fit_options.check(parser, args)
    runtime = opening.start(args)
    features, val_features = open_sources(args)
    kinds = fit_options.kinds(args)
    sources = {reverse: features.reversed() if reverse else features for reverse, *_ in kinds}
    members = [open_member(args, kind, sources[kind.reverse]) for kind in kinds]
    family = Family([member.trans_net for member in members], [member.reverse for member in members])
    fit = opening.fit(args, family, runtime)
    start_epoch = restore(members, fit) if args.start_epoch is None else args.start_epoch
    if members[0].resumed and start_epoch >= args.epochs:
        runtime.say(f"{members[0].path} is fitted for {start_epoch} epochs already")
        return

    fitted, held_out = hold_out(len(features.data), 0 if val_features else args.hold_out)
    load, unseen = partial(opening.loader, args, runtime=runtime), None
    if val_features or held_out is not None:
        unseen = load((val_features or features).data, part=held_out)
    loader, in_order = (load(features.data, part=fitted, shuffle=shuffle) for shuffle in (True, False))
    shapes = " and ".join(" → ".join(map(str, source.shapes)) for source in sources.values())
    count = len(features.data if fitted is None else fitted)
    runtime.say(f"{shapes}, layers {args.layers}, {count:,} images: {members[0].path}")
    directions = {}
    for reverse, source in sources.items():
        nets = [member.trans_net for member in members if member.reverse == reverse]
        directions[reverse] = Direction(nets, in_order, unseen, source.read, runtime)
        directions[reverse].begin(new=start_epoch == 0, reference=not args.no_reference)
    references = {reverse: direction.record() for reverse, direction in directions.items()}
    solve = partial(closed_form.solve_all, list(directions.values()))
    if args.solve is not None and start_epoch == 0:
        solve(last=not args.epochs)
    alphas, throughs = [member.alpha.to(runtime.device) for member in members], open_throughs(args, sources, runtime)
    step = partial(reconstruction.reconstruct, family=family, alphas=alphas, read=features.read, throughs=throughs)
    rates, left = opening.rates(args), list[float]()
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(member.log(args.out, args.epochs, start_epoch, runtime)) for member in members]
        if not args.epochs:
            left = closed_form.instabilities_of(directions.values())
            for i, member in enumerate(members):
                held = left[i] if left else None
                member.save(fit, 0, held_out=held, linear_reference=references[member.reverse])
        for epoch, metrics in reconstruction.epochs(
            fit, loader, step, rates, start_epoch=start_epoch,
            solve_every=args.solve if args.match == "feature" else None, solve=solve,
        ):  # fmt: skip
            measured = due(epoch, args.val_epoch, args.epochs)
            left = closed_form.instabilities_of(directions.values()) if measured else []
            saved = due(epoch, args.save_epoch, args.epochs) or any(log.overdue for log in logs)
            for i, (member, log) in enumerate(zip(members, logs)):
                reference = references[member.reverse]
                own = of_member(metrics, i) | {"lr": rates[epoch]}
                own |= {"linear_reference": reference["instability"]} if reference else {}
                own |= {"val_instability": left[i]} if left else {}
                log.write(epoch, own)
                if args.draw and measured:
                    pair = sources[member.reverse].read(*runtime.to_device(features.data.__getitems__([0])))
                    log.figure(epoch, "components", decomposition_figure(member.trans_net.eval(), *pair))
                if saved:
                    measures = {"mse": own["MSE"], "held_out": own.get("val_instability")}
                    member.save(fit, epoch + 1, keep=args.save_per_epoch, linear_reference=reference, **measures)
                    log.saved(member.path, epoch + 1)
    for i, (member, log) in enumerate(zip(members, logs)):
        errors = [line["MSE"] for line in runs.read_metrics(log.path)]
        words = reconstruction.closing_words(errors, left[i] if left else None, references[member.reverse])
        copies = f", every saved epoch in {member.copy_of('…').name}" if args.save_per_epoch else ""
        runtime.say(f"saved {member.path}{copies}; {words}; the log is {log.path}")
    give_next(args, members, features, val_features, runtime)


if __name__ == "__main__":
    main()
