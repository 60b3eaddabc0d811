"""Fit Trans-Nets that reconstruct net B's features from net A's (paper Sec. 3).

Beside every Trans-Net stands the linear reference: the best single linear layer, in closed form. What leaves more than
that unexplained was not fitted to its end.
"""

import contextlib
import itertools
from collections.abc import Sequence
from functools import partial

import torch

from models.cut_net import CutNet, Penultimate, open_net, reopen_net, stand_in_pixels
from models.fitting import between, fill_trans_net
from models.heads import Heads, freeze_heads, head_flops
from models.layers import Layer, note_of_sources
from models.pair import read_stored
from utils import checkpoint, fit_options, opening, options, runs
from utils.errors import InputError
from utils.features.live import live_source
from utils.features.source import Source, costs, hold_out
from utils.fit_options import Kind
from utils.parser import Namespace, Parser
from utils.report.maps import decomposition_figure
from utils.runtime import Runtime, command, seed_everything
from utils.training import closed_form, reconstruction, resume
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
    fit_options.add_kept_options(parser)
    options.add_ignored_options(parser, "--topk", "--channels")
    return parser


def layers_of(args: Namespace) -> tuple[Layer, Layer, str]:
    """Give the layers of net A and net B, and what file names call them."""
    first, second = (Layer(*layer, default=fit_options.DEFAULT_LAYER) for layer in options.both_layers(args))
    return first, second, runs.pair(first.label, second.label)


def open_stored(args: Namespace, split: str) -> Source:
    """Open the stored features that the options mean, and check what the options say of them."""
    first, second, label = layers_of(args)
    names = (options.data_name(args), args.sample_num, args.arch or options.ARCH, label, args.suffix, split)
    folder = args.convOut_path or runs.features_folder(args.out, *names)
    layer = label if first.is_named or second.is_named else None
    said = {"arch": args.arch, "sample_num": args.sample_num or None, "layer": layer}
    data = opening.stored_features(Namespace(**vars(args) | {"reverse": False}), folder, split, said)
    return Source(data, read_stored, (data.shape_a, data.shape_b), data.provenance)


def open_nets(args: Namespace, runtime: Runtime) -> tuple[CutNet, CutNet]:
    """Open both nets, cut where the options say, each with the constants that it reads pixels by."""
    (first, second, _), (arch_a, arch_b) = layers_of(args), fit_options.archs(args)
    a = open_net(args.net_A, arch_a, first)
    b = open_net(args.net_B, arch_b, second, options.second_layer_hint(args))
    options.fill(args, *(net.state.get("data", {}) for net in (a, b)))
    a, b = (
        net.normalised_by(opening.normalisation(args, net.state, runtime, name)) for name, net in (("A", a), ("B", b))
    )
    if note := note_of_sources((a.source, b.source), (a.model, b.model), args.image_size):
        runtime.say(note)
    return a, b


def open_live(args: Namespace, nets: tuple[CutNet, CutNet], heads: Heads, split: str, runtime: Runtime) -> Source:
    """Open images whose features are computed whenever they are read, recorded as ConvOutput.py records them."""
    images = opening.images(args, split, nets[0].state.get("data", {}))
    a, b = (opening.with_record(args, net.source, net.state, images) for net in nets)
    known = {"dataset": args.dataset, "name": args.name, "sample_num": args.sample_num}
    known |= {"arch": runs.pair(a.arch, b.arch), "label": layers_of(args)[-1]}
    opening.bind(args, runtime, images)
    whole = (nets[0].whole(), nets[1].whole())
    return live_source(images, (a, b), heads.modules, heads.shapes, runtime, whole, **known)


def open_sources(args: Namespace, runtime: Runtime) -> tuple[Source, Source | None]:
    """Open what is fitted, and what it is measured on if that lies there."""
    of_split, unseen = partial(open_stored, args), None
    if args.net_A:
        nets = open_nets(args, runtime)
        listed = opening.images(args, "train", nets[0].state.get("data", {}))
        heads = freeze_heads(*nets, opening.few_pixels(listed), runtime.device)
        of_split = partial(open_live, args, nets, heads, runtime=runtime)
    fitted = of_split("train")
    with contextlib.nullcontext() if args.validate else contextlib.suppress(InputError):
        unseen = of_split("val")
    same = unseen and unseen.folder and unseen.folder == fitted.folder  # the authors' say no split
    return fitted, None if same else unseen


def open_penultimate(source: Source, arch: str | None) -> Penultimate:
    """Open the target's net again, and give its frozen layers from the features up to its last one."""
    net = reopen_net(source.provenance.b, arch)
    net.prove(stand_in_pixels(source.provenance.image_size))
    return net.penultimate(source.shapes[1])


def open_member(args: Namespace, kind: Kind, source: Source) -> Member:
    """Make one Trans-Net, as its seed initialises it, or find it where an earlier run left it."""
    said = {"dataset": options.data_name(args), "arch": args.arch or options.ARCH, "sample_num": args.sample_num}
    known = source.provenance.completed(**said, label=layers_of(args)[-1])  # the authors' features say nothing
    own, settings = fit_options.place(args, kind, known), fit_options.settings(args, kind)
    resumed = resume.find(
        args.resume, own, settings, source=source.provenance, restart=args.restart, extendable=not args.logspace
    )
    contents = {source.provenance.split or "train": source.data.contents} if source.data.contents else {}
    if own.exists() and not args.restart:
        resume.check_images(own, contents)
    seed_everything(kind.seed)
    trans_net = between(
        *source.shapes, layers=kind.layers, fc=args.fc, norm=args.norm, bn=args.bn, affine=args.affine,
        fix_p=args.fix_p, standardise=args.standardise,
    )  # fmt: skip
    state = checkpoint.load(resumed) if resumed else {}
    if resumed:
        fill_trans_net(trans_net, state, resumed)
    images = {split: recorded.to_record() for split, recorded in contents.items()}
    weights = settings["alpha"]
    by_order = torch.zeros(len(weights)) if args.L2 else torch.tensor(weights).flip(0)  # as p is
    return Member(trans_net, own, settings, by_order, resumed, state, kind.reverse, source.provenance, images)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the step."""
    parser = build_parser()
    args = parser.parse_args(argv)
    fit_options.check(parser, args)
    runtime = opening.start(args)
    features, val_features = open_sources(args, runtime)
    kinds = fit_options.kinds(args)
    sources = {reverse: features.reversed() if reverse else features for reverse, *_ in kinds}
    members = [open_member(args, kind, sources[kind.reverse]) for kind in kinds]
    family = Family([member.trans_net for member in members], [member.reverse for member in members])
    fit = opening.fit(args, family, runtime)
    start_epoch = restore(members, fit) if args.start_epoch is None else args.start_epoch
    if members[0].resumed and start_epoch >= args.epochs:
        runtime.say(f"{members[0].path} is fitted for {start_epoch} epochs already")
        return

    archs = fit_options.archs(args)
    if features.folder is None:
        runtime.say(costs(features.shapes, len(features.data), head_flops(features.provenance, archs)))
    features = opening.with_decoded(args, features, runtime)
    val_features = val_features and opening.with_decoded(args, val_features, runtime)
    fitted, held_out = hold_out(len(features.data), 0 if val_features else args.hold_out)
    load = partial(opening.loader, args, runtime=runtime)
    unseen = load(val_features.data) if val_features else None
    unseen = load(features.data, part=held_out) if len(held_out) else unseen
    loader, in_order = (load(features.data, part=fitted, shuffle=shuffle) for shuffle in (True, False))
    shapes = " → ".join(map(str, sources[kinds[0].reverse].shapes))
    runtime.say(f"{shapes}, layers {args.layers}, {len(fitted):,} images: {members[0].path}")
    reads = {reverse: source.read for reverse, source in sources.items()}
    directions = closed_form.directions_of(members, reads, in_order, unseen, runtime)
    for direction in directions.values():
        direction.begin(new=start_epoch == 0, reference=not args.no_reference)
    solve = partial(closed_form.solve_all, list(directions.values()))
    if args.solve is not None and start_epoch == 0:
        solve(last=not args.epochs)
    doubts = opening.say_doubts(args, val_features or features, runtime)
    alphas = [member.alpha.to(runtime.device) for member in members]
    throughs = {
        reverse: open_penultimate(source, archs[1 - reverse]).to(runtime.device)
        for reverse, source in sources.items() if args.match == "penultimate"
    }  # fmt: skip
    step = partial(reconstruction.reconstruct, family=family, alphas=alphas, read=features.read, throughs=throughs)
    rates, left = opening.rates(args), list[float]()
    with contextlib.ExitStack() as stack:
        logs = [
            stack.enter_context(member.log(args.out, args.epochs, start_epoch, runtime, **doubts)) for member in members
        ]
        if not args.epochs:
            left = closed_form.instabilities_of(directions.values())
            for member, held in itertools.zip_longest(members, left):
                member.save(fit, 0, held_out=held, linear_reference=directions[member.reverse].record, **doubts)
        for epoch, metrics in reconstruction.epochs(
            fit, loader, step, rates, start_epoch=start_epoch,
            solve_every=args.solve if args.match == "feature" else None, solve=solve,
        ):  # fmt: skip
            measured = due(epoch, args.val_epoch, args.epochs)
            left = closed_form.instabilities_of(directions.values()) if measured else []
            saved = due(epoch, args.save_epoch, args.epochs) or any(log.overdue for log in logs)
            for i, (member, log) in enumerate(zip(members, logs)):
                reference = directions[member.reverse].record
                own = of_member(metrics, i) | {"lr": rates[epoch]}
                own |= {"linear_reference": reference["instability"]} if reference else {}
                own |= {"val_instability": left[i]} if left else {}
                log.write(epoch, own)
                if args.draw and measured:
                    pair = sources[member.reverse].read(*runtime.to_device(features.data.__getitems__([0])))
                    log.figure(epoch, "components", decomposition_figure(member.trans_net.eval(), *pair))
                if saved:
                    measures = {"mse": own["MSE"], "held_out": own.get("val_instability")}
                    member.save(
                        fit, epoch + 1, keep=args.save_per_epoch, linear_reference=reference, **measures, **doubts
                    )
                    log.saved(member.path, epoch + 1)
    for i, (member, log) in enumerate(zip(members, logs)):
        errors = [line["MSE"] for line in runs.read_metrics(log.path)]
        words = reconstruction.closing_words(
            errors, left[i] if left else None, directions[member.reverse].record, **doubts
        )
        copies = f", every saved epoch in {member.copy_of('…').name}" if args.save_per_epoch else ""
        runtime.say(f"saved {member.path}{copies}; {words}; the log is {log.path}")
    for reverse, source in sources.items():
        kind = {"reverse": reverse, "initial_seed": kinds[0].seed}
        trans_nets = [member.path for member in members if member.settings | kind == member.settings]
        where = [
            *fit_options.again(parser, args, source.provenance, features.folder, reverse, bool(val_features)),
            "--json",
            runs.report_folder(args.out, trans_nets[0]) / "variance.json",
        ]
        runtime.say_next("Variance.py", *where, "--transnet", *trans_nets)


if __name__ == "__main__":
    main()
