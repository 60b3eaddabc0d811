"""Fit Trans-Nets that reconstruct net B's features from net A's, and A's from B's (paper Sec. 3).

One direction alone is high where one net's features are simple: what two nets share is the smaller
of both. Each direction is fitted as it would be alone; --one_direction fits A → B alone.

Beside every Trans-Net stands the linear reference: the best single linear layer, in closed form.
What leaves more than that unexplained was not fitted to its end.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from utils import fit_options, options
from utils.command import answer_early, command
from utils.parser import Namespace, Parser


def build_parser() -> Parser:
    """Declare this step's options."""
    parser = Parser(
        __doc__,
        "python Training_TransNet.py --convOut_path convOuts/… --alpha [0.1,0.1]",
        check=fit_options.check,
    )
    fit_options.add_source_options(parser)
    fit_options.add_family_options(parser)
    options.add_trans_net_options(parser)
    fit_options.add_budget_options(parser)
    options.add_training_options(
        parser,
        optim=None,
        lr=None,
        epochs=None,
        optims=("SGD", "Adam", "Muon"),
        momentum=None,
        weight_decay=None,
        fewest_epochs=0,
        logspace=2,
        decay_factor=0.2,
        save_epoch=100,
        val_epoch=10,
    )
    options.add_resume_options(parser)
    options.add_run_options(parser)
    options.add_output_options(parser)
    fit_options.add_kept_options(parser)
    options.add_ignored_options(parser, "--topk", "--channels")
    return parser


# Help, a wrong option and a missing file are answered before PyTorch is loaded, which takes seconds.
if __name__ == "__main__":
    answer_early(build_parser())

import torch
from torch import Tensor, nn

from consistency.budget import Budget
from consistency.family import Member, of_member, restore, save
from consistency.fitting import Beside, Fitting, Pairs, converge
from consistency.trans_nets import between, channels_of, fill_trans_net
from models.cut_net import CutNet, Penultimate, open_net, reopen_net, stand_in_pixels
from models.heads import Heads, freeze_heads, head_flops
from models.layers import Layer, note_of_sources
from models.pair import read_stored
from models.trans_net import TransNet
from utils import checkpoint, opening, runs
from utils.errors import InputError
from utils.features.live import live_source
from utils.features.source import Source, costs, hold_out
from utils.fit_options import Kind
from utils.report.maps import decomposition_figure
from utils.report.tables import closing_words
from utils.runtime import Runtime, seed_everything
from utils.training import resume
from utils.training.schedules import due


class Group(NamedTuple):
    """Trans-Nets that are fitted together.

    Attributes:
        members: of one budget.
        budget: how far and by what.
        records: for each what doublings changed, where that was tried.
    """

    members: list[Member]
    budget: Budget
    records: list[dict[str, Any] | None]


def layers_of(args: Namespace) -> tuple[Layer, Layer, str]:
    """Give the layers of net A and net B, and what file names call them."""
    first, second = (
        Layer(*layer, default=fit_options.DEFAULT_LAYER) for layer in options.both_layers(args)
    )
    return first, second, runs.pair(first.label, second.label)


def open_stored(args: Namespace, split: str) -> Source:
    """Open the stored features that the options mean, and check what the options say of them."""
    first, second, label = layers_of(args)
    names = (
        options.data_name(args),
        args.sample_num,
        args.arch or options.ARCH,
        label,
        args.suffix,
        split,
    )
    folder = args.convOut_path or runs.features_folder(args.out, *names)
    layer = label if first.is_named or second.is_named else None
    expected = {"arch": args.arch, "sample_num": args.sample_num or None, "layer": layer}
    # Features lie there as A → B; `Source.reversed` exchanges them where a fit needs it.
    data = opening.stored_features(
        Namespace(**vars(args) | {"reverse": False}), folder, split, expected
    )
    return Source(data, read_stored, (data.shape_a, data.shape_b), data.provenance)


def open_nets(args: Namespace, runtime: Runtime) -> tuple[CutNet, CutNet]:
    """Open both nets, cut where the options say.

    Each comes with the normalisation by which it reads pixels.
    """
    (first, second, _), (arch_a, arch_b) = layers_of(args), fit_options.archs(args)
    a = open_net(args.net_A, arch_a, first)
    b = open_net(args.net_B, arch_b, second, options.second_layer_hint(args))
    options.fill(args, *(net.state.get("data", {}) for net in (a, b)))
    a, b = (
        net.normalised_by(opening.normalisation(args, net.state, runtime, name))
        for name, net in (("A", a), ("B", b))
    )
    if note := note_of_sources((a.source, b.source), (a.model, b.model), args.image_size):
        runtime.say(note)
    return a, b


def open_live(
    args: Namespace, nets: tuple[CutNet, CutNet], heads: Heads, split: str, runtime: Runtime
) -> Source:
    """Open images whose features are computed whenever they are read.

    They are recorded as ConvOutput.py records stored ones.
    """
    images = opening.images(args, split, nets[0].state.get("data", {}))
    a, b = (opening.with_record(args, net.source, net.state, images) for net in nets)
    facts = {"dataset": args.dataset, "name": args.name, "sample_num": args.sample_num}
    facts |= {"arch": runs.pair(a.arch, b.arch), "label": layers_of(args)[-1]}
    facts |= {"folders": options.image_folders(args)}
    opening.bind(args, runtime, images)
    whole = (nets[0].whole(), nets[1].whole())
    return live_source(images, (a, b), heads.modules, heads.shapes, runtime, whole, **facts)


def open_sources(args: Namespace, runtime: Runtime) -> tuple[Source, Source | None]:
    """Open what is fitted, and what it is measured on if that lies there."""
    of_split, unseen = partial(open_stored, args), None
    if args.net_A:
        nets = open_nets(args, runtime)
        listed = opening.images(args, "train", nets[0].state.get("data", {}))
        # Both heads, frozen once for both splits, and proved on a few pixels.
        heads = freeze_heads(*nets, opening.few_pixels(listed), runtime.device)
        of_split = partial(open_live, args, nets, heads, runtime=runtime)
    fitted = of_split("train")
    # Held-out images are welcome, and an error only where --validate asks for them.
    with contextlib.nullcontext() if args.validate else contextlib.suppress(InputError):
        unseen = of_split("val")
    same = unseen and unseen.folder and unseen.folder == fitted.folder  # the authors' say no split
    return fitted, None if same else unseen


def open_penultimate(source: Source, arch: str | None) -> Penultimate:
    """Open the target's net again, from the features up to its penultimate layer.

    Its layers are frozen.
    """
    net = reopen_net(source.provenance.b, arch)
    net.prove(stand_in_pixels(source.provenance.image_size))
    return net.penultimate(source.shapes[1])


def open_member(args: Namespace, kind: Kind, source: Source) -> Member:
    """Make one Trans-Net, as its seed initialises it, or find it where an earlier run left it."""
    facts = {
        "dataset": options.data_name(args),
        "arch": args.arch or options.ARCH,
        "sample_num": args.sample_num,
    }
    # The authors' features say nothing
    provenance = source.provenance.completed(**facts, label=layers_of(args)[-1])
    path = fit_options.place(args, kind, provenance)
    settings = fit_options.settings(args, kind, channels_of(source.shapes[0]))
    # What it goes on from; another fit's checkpoint in its place is refused.
    resumed = resume.find(
        args.resume,
        path,
        settings,
        source=source.provenance,
        restart=args.restart,
        extendable=args.steps is None and not args.logspace,
    )
    contents = (
        {source.provenance.split or "train": source.data.contents} if source.data.contents else {}
    )
    if path.exists() and not args.restart:
        resume.check_images(path, contents)
    state = checkpoint.load(resumed) if resumed else {}
    hidden = settings["hidden"]
    # It may be of a version without them, or have been doubled
    if resumed and (args.hidden is None or args.until):
        hidden = state.get("trans_net", {}).get("hidden", 0)
    trans_net = make_trans_net(args, kind, source, hidden)
    if resumed:
        fill_trans_net(trans_net, state, resumed)
    images = {split: recorded.to_record() for split, recorded in contents.items()}
    weights = settings["alpha"]
    by_order = torch.zeros(len(weights)) if args.L2 else torch.tensor(weights).flip(0)  # as p is
    title = fit_options.title(args, kind)
    return Member(
        trans_net,
        path,
        settings,
        by_order,
        resumed,
        state,
        kind.reverse,
        source.provenance,
        images,
        title,
    )


def make_trans_net(args: Namespace, kind: Kind, source: Source, hidden: int) -> TransNet:
    """Make a Trans-Net with M = `hidden` spare channels, as its seed initialises it."""
    seed_everything(kind.seed)
    return between(
        *source.shapes,
        layers=kind.layers,
        fc=args.fc,
        norm=args.norm,
        bn=args.bn,
        affine=args.affine,
        fix_p=args.fix_p,
        standardise=args.standardise,
        hidden=hidden,
    )


def group(args: Namespace, members: Sequence[Member]) -> list[Group]:
    """Part Trans-Nets by the epoch that they were left at, and by their budgets.

    A run that was interrupted between two savings leaves its Trans-Nets at different epochs; parted,
    each goes on as it would alone.
    """
    by_epoch = dict[int, list[Member]]()
    for member in members:
        by_epoch.setdefault(member.state.get("epoch", 0), []).append(member)
    return [one for alike in by_epoch.values() for one in group_by_budget(args, alike)]


def group_by_budget(args: Namespace, members: Sequence[Member]) -> list[Group]:
    """Part Trans-Nets by their budgets.

    One standardised layer that is solved needs no step: it is the linear reference. With --until
    converged each has steps of its own, which its checkpoint knows where it goes on from one.
    """
    budget = Budget.of(vars(args))
    if budget.steps is None:
        return [Group([*members], budget, [None] * len(members))]
    # No step for those that the closed form makes whole.
    solved = [one for one in members if is_solved(args, one)]
    deep = [one for one in members if one not in solved]
    groups = [Group(solved, replace(budget, steps=0), [None] * len(solved))] if solved else []
    if not args.until:
        return groups + [Group(deep, budget, [None] * len(deep))] * bool(deep)
    for member in deep:
        record = member.state.get("fitted")
        of_member = replace(budget, steps=record["steps"]) if record else budget
        groups.append(Group([member], of_member, [record]))
    return groups


def seeks_its_end(args: Namespace, group: Group) -> bool:
    """Say whether the steps and spare channels of a group are still to be found."""
    return bool(args.until) and bool(group.budget.steps) and group.records == [None]


def is_solved(args: Namespace, member: Member) -> bool:
    """Say whether the closed form alone makes a Trans-Net: it has one standardised layer."""
    return args.standardise and args.solve is not None and member.trans_net.order == 0


def find_end(
    args: Namespace, group: Group, kind: Kind, source: Source, pairs: Pairs, runtime: Runtime
) -> Group:
    """Find the steps and spare channels that a Trans-Net needs; see `converge`."""
    (member,) = group.members
    convergence = converge(
        partial(make_trans_net, args, kind, source),
        pairs,
        group.budget,
        runtime,
        hidden=member.trans_net.hidden,
        backwards=kind.reverse,
        alpha=member.alpha,
        tolerance=args.tolerance,
    )
    member_at_end = replace(
        member, trans_net=make_trans_net(args, kind, source, convergence.hidden)
    )
    return Group(
        [member_at_end], replace(group.budget, steps=convergence.steps), [convergence.record()]
    )


def fit_group(
    args: Namespace,
    group: Group,
    pairs: Pairs,
    sources: Mapping[bool, Source],
    references: dict[bool, Beside],
    throughs: Mapping[bool, nn.Module],
    doubts: Mapping[str, Any],
    runtime: Runtime,
) -> None:
    """Fit the Trans-Nets of a group, epoch by epoch; write their logs and checkpoints."""
    members, budget, records = group
    fitting = Fitting(
        [member.trans_net for member in members],
        pairs,
        budget,
        runtime,
        backwards=[member.reverse for member in members],
        alphas=[member.alpha for member in members],
        throughs=throughs,
        beside=references,
        reference=not args.no_reference,
    )
    # From where the checkpoints are; --start_epoch, an option of the released code, overrules them.
    start_epoch = restore(members, fitting.fit) if args.start_epoch is None else args.start_epoch
    count = len(fitting.rates)
    fitting.begin(start_epoch=start_epoch)

    def save_all(epoch: int, held_out: Sequence[float], errors: Sequence[float] = ()) -> None:
        facts = [
            {
                "linear_reference": references[member.reverse].record(),
                "fitted": fitting.record(i, records[i]),
                "held_out": held_out[i] if held_out else None,
                **({"mse": errors[i]} if errors else {}),
                **doubts,
            }
            for i, member in enumerate(members)
        ]
        save(members, fitting.fit, epoch, facts, keep=bool(epoch) and args.save_per_epoch)

    with contextlib.ExitStack() as stack:
        logs = [
            stack.enter_context(one.log(args.out, count, start_epoch, runtime, **doubts))
            for one in members
        ]
        held_out = list[float]()
        # Without epochs the closed form is all, and it is saved here.
        if not count:
            held_out = fitting.instabilities()
            save_all(0, held_out)
        for epoch, metrics in fitting.epochs(start_epoch):
            # Measure: Var(x_Δ)/Var(x*) on images that are not fitted.
            measured = due(epoch, args.val_epoch, count)
            held_out = fitting.instabilities() if measured else []
            errors = [of_member(metrics, i)["MSE"] for i in range(len(members))]
            for i, (member, log) in enumerate(zip(members, logs)):
                reference = references[member.reverse].record()
                of_this = of_member(metrics, i) | {"lr": fitting.rates[epoch][0]}
                of_this |= {"linear_reference": reference["instability"]} if reference else {}
                of_this |= {"val_instability": held_out[i]} if held_out else {}
                log.write(epoch, of_this, fitting.words(i, of_this))
                if args.draw and measured:
                    data = sources[member.reverse].data
                    pair = sources[member.reverse].read(*runtime.to_device(data.__getitems__([0])))
                    log.figure(
                        epoch, "components", decomposition_figure(member.trans_net.eval(), *pair)
                    )
            # Save all of them together, so that they can go on together.
            if due(epoch, args.save_epoch, count) or any(log.overdue for log in logs):
                save_all(epoch + 1, held_out, errors)
                for member, log in zip(members, logs):
                    log.saved(member.path, epoch + 1)
    for i, (member, log) in enumerate(zip(members, logs)):
        reference = references[member.reverse].record()
        words = closing_words(
            fitting.record(i, records[i]), held_out[i] if held_out else None, reference, **doubts
        )
        copies = f", every saved epoch in {member.copy_of('…').name}" if args.save_per_epoch else ""
        runtime.say(f"saved {member.path}{copies}; {words}; the log is {log.path}")


def unfinished_groups(
    args: Namespace, members: Sequence[Member], images: int, runtime: Runtime
) -> list[Group]:
    """Give the groups of Trans-Nets that have epochs to train; say which have none.

    Args:
        args: the options, filled in.
        members: all Trans-Nets of this run.
        images: how many are fitted, which says how many epochs a budget in steps has.
        runtime: says a line once.
    """
    groups = list[Group]()
    for one in group(args, members):
        first = one.members[0]
        count = len(one.budget.rates(one.budget.batches(images, runtime.world_size)))
        done = first.state.get("epoch", 0) if args.start_epoch is None else args.start_epoch
        if first.resumed and not seeks_its_end(args, one) and done >= count:
            runtime.say(f"{first.path} is fitted for {done} epochs already")
        else:
            groups.append(one)
    return groups


def open_pairs(
    args: Namespace,
    features: Source,
    val_features: Source | None,
    parts: tuple[Tensor, Tensor],
    runtime: Runtime,
) -> Pairs:
    """Make the loaders of what is fitted, and of what instabilities are measured on.

    Args:
        args: the options, filled in.
        features: of the training images.
        val_features: of the validation images; None: there are none.
        parts: the numbers of the training images that are fitted, int64 (N,), and of those that
            are held out in place of validation images.
        runtime: device and processes.
    """
    fitted, held_out = parts
    load = partial(opening.loader, args, runtime=runtime)
    unseen = load(val_features.data) if val_features else None
    unseen = load(features.data, numbers=held_out) if len(held_out) else unseen
    return Pairs(
        lambda numbers, shuffle: load(features.data, numbers=numbers, shuffle=shuffle),
        features.read,
        fitted,
        unseen,
    )


def next_words(
    parser: Parser,
    args: Namespace,
    members: Sequence[Member],
    kind: Kind,
    features: Source,
    *,
    has_val: bool,
) -> list[object]:
    """Give the words by which Variance.py measures Trans-Nets of one direction.

    They differ in depth alone.

    Args:
        parser: of the options.
        args: the options, filled in.
        members: all Trans-Nets of this run.
        kind: whose direction and seed they have.
        features: of the training images, as A → B.
        has_val: there are features of validation images.
    """
    alike = {"reverse": kind.reverse, "initial_seed": kind.seed}
    trans_nets = [member.path for member in members if member.settings | alike == member.settings]
    source = (features.reversed() if kind.reverse else features).provenance
    return [
        *fit_options.again(parser, args, source, features.folder, kind.reverse, has_val),
        "--json",
        runs.report_folder(args.out, trans_nets[0]) / "variance.json",
        "--transnet",
        *trans_nets,
    ]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the step."""
    parser = build_parser()
    args = parser.parse_args(argv)
    runtime = opening.start(args)
    # The features, stored or computed from images as they are read.
    features, val_features = open_sources(args, runtime)
    # The Trans-Nets: every direction, depth and seed that the options ask for.
    kinds = fit_options.kinds(args)
    sources = {reverse: features.reversed() if reverse else features for reverse, *_ in kinds}
    members = [open_member(args, kind, sources[kind.reverse]) for kind in kinds]
    kind_of = {member.path: kind for member, kind in zip(members, kinds)}
    # Some fitted images are held out where no validation features are there to measure on.
    fitted, held_out = hold_out(len(features.data), 0 if val_features else args.hold_out)
    groups = unfinished_groups(args, members, len(fitted), runtime)
    if not groups:
        return

    # Say what a pass costs where features are computed, not read.
    archs = fit_options.archs(args)
    if features.folder is None:
        runtime.say(
            costs(features.shapes, len(features.data), head_flops(features.provenance, archs))
        )
    # Nothing is left to refuse: decode the images, if there are some.
    features = opening.with_decoded(args, features, runtime)
    val_features = val_features and opening.with_decoded(args, val_features, runtime)
    sources = {reverse: source._replace(data=features.data) for reverse, source in sources.items()}
    pairs = open_pairs(args, features, val_features, (fitted, held_out), runtime)
    # Say what is fitted, and what is doubtful about its nets.
    shapes = " → ".join(map(str, sources[kinds[0].reverse].shapes))
    runtime.say(f"{shapes}, layers {args.layers}, {len(fitted):,} images: {members[0].path}")
    doubts = opening.say_doubts(args, val_features or features, runtime)
    # With --match penultimate the loss is taken behind the target net's frozen layers.
    throughs = {
        reverse: open_penultimate(source, archs[1 - reverse]).to(runtime.device)
        for reverse, source in sources.items()
        if args.match == "penultimate"
    }
    # Fit group by group; the linear reference of a direction is solved once for all of them.
    references = dict[bool, Beside]()
    for one in groups:
        if seeks_its_end(args, one):
            kind = kind_of[one.members[0].path]
            at_end = find_end(args, one, kind, sources[kind.reverse], pairs, runtime)
        else:
            at_end = one
        fit_group(args, at_end, pairs, sources, references, throughs, doubts, runtime)
    # Variance.py finds the other direction beside the first one.
    runtime.say_next(
        "Variance.py",
        *next_words(parser, args, members, kinds[0], features, has_val=bool(val_features)),
    )


if __name__ == "__main__":
    main()
