"""Fit Trans-Nets that reconstruct net B's features from net A's, and A's from B's (paper Sec. 3).

One direction alone is high where one net's features are simple: what two nets share is the smaller
of both. Each direction is fitted as it would be alone; --one_direction fits A → B alone.

Beside every Trans-Net stands the linear reference: the best single linear layer, in closed form.
What leaves more than that unexplained was not fitted to its end.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from utils import fit_options, options
from utils.command import answer_early, command
from utils.fit_options import FitOptions, KeptOptions, Kind, ReadOptions
from utils.option_groups import DataOptions, LayerOptions, OutputOptions, RunOptions
from utils.parser import Parser


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

from consistency.bootstrap import Interval
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
from utils.kept import Remains
from utils.report.maps import decomposition_figure
from utils.report.tables import closing_words
from utils.runtime import Runtime, seed_everything
from utils.training import resume
from utils.training.engine import saved_midway
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


def layers_of(options: LayerOptions) -> tuple[Layer, Layer, str]:
    """Give the layers of net A and net B, and what file names call them."""
    first, second = (
        Layer(**options.of_net(net), default=fit_options.DEFAULT_LAYER) for net in "AB"
    )
    return first, second, runs.pair(first.label, second.label)


def open_stored(
    split: str, reading: ReadOptions, layers: LayerOptions, label: str, output: OutputOptions
) -> Source:
    """Open the stored features that the options mean, and check what the options say of them.

    Args:
        split: "train" or "val".
        reading: the folder, or what is in the names of the usual one.
        layers: of nets A and B.
        label: the data set's part of file names.
        output: where the usual folder is.
    """
    first, second, layer = layers_of(layers)
    arch, sample_num = reading.arch or options.ARCH, reading.sample_num
    names = (label, sample_num, arch, layer, output.suffix, split)
    expected = {
        "dataset": reading.dataset,
        "arch": reading.arch,
        "sample_num": sample_num or None,
        "layer": layer if first.is_named or second.is_named else None,
    }
    # Features lie there as A → B; `Source.reversed` exchanges them where a fit needs it.
    folder = reading.convOut_path or runs.features_folder(output.out, *names)
    data = opening.stored_features(folder, split, expected)
    return Source(data, read_stored, (data.shape_a, data.shape_b), data.provenance)


def open_nets(reading: ReadOptions, layers: LayerOptions) -> list[CutNet]:
    """Open net A and net B, cut where the options say; none where features are stored."""
    if not (reading.net_A and reading.net_B):
        return []
    (first, second, _), (arch_a, arch_b) = layers_of(layers), reading.archs
    a = open_net(reading.net_A, arch_a, first)
    return [a, open_net(reading.net_B, arch_b, second, layers.second_hint)]


def open_live(
    split: str,
    nets: Sequence[CutNet],
    heads: Heads,
    label: str,
    data: DataOptions,
    runtime: Runtime,
) -> Source:
    """Open images whose features are computed whenever they are read.

    They are recorded as ConvOutput.py records stored ones.

    Args:
        split: "train" or "val".
        nets: A and B, with the normalisation by which they read pixels.
        heads: of both.
        label: of the layers, in file names.
        data: the images.
        runtime: device, processes, precision.
    """
    images = opening.images(data, split, nets[0].data)
    a, b = (opening.with_record(data, net.source, net.state, images) for net in nets)
    opening.bind(data, runtime, images)
    return live_source(
        images,
        (a, b),
        heads.modules,
        heads.shapes,
        runtime,
        (nets[0].whole(), nets[1].whole()),
        dataset=data.dataset,
        name=data.name,
        sample_num=data.sample_num,
        arch=runs.pair(a.arch, b.arch),
        label=label,
        folders=data.folders,
    )


def live_opener(
    nets: Sequence[CutNet], label: str, data: DataOptions, runtime: Runtime
) -> Callable[[str], Source]:
    """Give what opens the images of a split for both nets' features; see `open_live`."""
    a, b = (
        net.normalised_by(opening.normalisation(data, net.state, runtime, name))
        for name, net in zip("AB", nets)
    )
    if note := note_of_sources((a.source, b.source), (a.model, b.model), data.image_size):
        runtime.say(note)
    listed = opening.images(data, "train", a.data)
    # Both heads, frozen once for both splits, and proved on a few pixels.
    heads = freeze_heads(a, b, opening.few_pixels(listed), runtime.device)
    return partial(open_live, nets=(a, b), heads=heads, label=label, data=data, runtime=runtime)


def open_sources(
    of_split: Callable[[str], Source], *, validate: bool
) -> tuple[Source, Source | None]:
    """Open what is fitted, and what it is measured on if that lies there.

    `of_split` opens "train" or "val"; with `validate` a missing "val" is an error.
    """
    fitted, unseen = of_split("train"), None
    # Held-out images are welcome, and an error only where --validate asks for them.
    with contextlib.nullcontext() if validate else contextlib.suppress(InputError):
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


def open_members(
    sources: Mapping[bool, Source],
    fit: FitOptions,
    output: OutputOptions,
    recorded: Mapping[str, Any],
    unsaid: Mapping[str, Any],
) -> list[Member]:
    """Make all Trans-Nets, or find them where an earlier run left them.

    Args:
        sources: the features, by whether the direction is B → A.
        fit: what they are made of.
        output: where they are saved, and whether they go on from checkpoints.
        recorded: `options.settings` of the step.
        unsaid: fields of the features' provenance, where that says nothing (the authors').
    """
    paths = [
        fit.place(output, kind, sources[kind.reverse].provenance.completed(**unsaid))
        for kind in fit.kinds
    ]
    # Those that were saved together go back together, where one of them is damaged.
    resume.put_right(output.resume, *paths, restart=output.restart)
    return [
        open_member(path, kind, sources[kind.reverse], fit, output, recorded)
        for path, kind in zip(paths, fit.kinds)
    ]


def open_member(
    path: Path,
    kind: Kind,
    source: Source,
    fit: FitOptions,
    output: OutputOptions,
    recorded: Mapping[str, Any],
) -> Member:
    """Make one Trans-Net, as its seed initialises it, or find it where an earlier run left it.

    Args:
        path: where it is saved.
        kind: which.
        source: its features, as its direction calls them.
        fit: what it is made of.
        output: whether it goes on from a checkpoint.
        recorded: `options.settings` of the step.
    """
    settings = fit.settings(recorded, kind, channels_of(source.shapes[0]))
    # What it goes on from; another fit's checkpoint in its place is refused.
    resumed = resume.find(
        output.resume,
        path,
        settings,
        source=source.provenance,
        restart=output.restart,
        # --logspace spreads its decades over all epochs
        extendable="steps" not in settings and not settings["logspace"],
    )
    contents = (
        {source.provenance.split or "train": source.data.contents} if source.data.contents else {}
    )
    if path.exists() and not output.restart:
        resume.check_images(path, contents)
    state = checkpoint.load(resumed) if resumed else {}
    hidden = settings["hidden"]
    # It may be of a version without them, or have been doubled
    if resumed and (fit.hidden is None or fit.until):
        hidden = state.get("trans_net", {}).get("hidden", 0)
    trans_net = make_trans_net(fit, kind, source, hidden)
    if resumed:
        fill_trans_net(trans_net, state, resumed)
    images = {split: of_split.to_record() for split, of_split in contents.items()}
    weights = settings["alpha"]
    by_order = torch.zeros(len(weights)) if fit.L2 else torch.tensor(weights).flip(0)  # as p is
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
        fit.title(kind),
    )


def make_trans_net(fit: FitOptions, kind: Kind, source: Source, hidden: int) -> TransNet:
    """Make a Trans-Net with M = `hidden` spare channels, as its seed initialises it."""
    seed_everything(kind.seed)
    return between(
        *source.shapes,
        layers=kind.layers,
        fc=fit.fc,
        norm=fit.norm,
        bn=fit.bn,
        affine=fit.affine,
        fix_p=fit.fix_p,
        standardise=fit.standardise,
        hidden=hidden,
    )


def group(fit: FitOptions, budget: Budget, members: Sequence[Member]) -> list[Group]:
    """Part Trans-Nets by the epoch that they were left at, and by their budgets.

    A run that was interrupted between two savings leaves its Trans-Nets at different epochs; parted,
    each goes on as it would alone.
    """
    by_epoch = dict[int, list[Member]]()
    for member in members:
        by_epoch.setdefault(member.state.get("epoch", 0), []).append(member)
    return [one for alike in by_epoch.values() for one in group_by_budget(fit, budget, alike)]


def group_by_budget(fit: FitOptions, budget: Budget, members: Sequence[Member]) -> list[Group]:
    """Part Trans-Nets by their budgets.

    One standardised layer that is solved needs no step: it is the linear reference. With --until
    converged each has steps of its own, which its checkpoint knows where it goes on from one.
    """
    if budget.steps is None:
        return [Group([*members], budget, [None] * len(members))]
    # No step for those that the closed form makes whole.
    solved = [one for one in members if fit.is_solved and one.trans_net.order == 0]
    deep = [one for one in members if one not in solved]
    groups = [Group(solved, replace(budget, steps=0), [None] * len(solved))] if solved else []
    if not fit.until:
        return groups + [Group(deep, budget, [None] * len(deep))] * bool(deep)
    for member in deep:
        record = member.state.get("fitted")
        of_member = replace(budget, steps=record["steps"]) if record else budget
        groups.append(Group([member], of_member, [record]))
    return groups


def seeks_its_end(fit: FitOptions, group: Group) -> bool:
    """Say whether the steps and spare channels of a group are still to be found."""
    return bool(fit.until) and bool(group.budget.steps) and group.records == [None]


def trials_of(member: Member, output: OutputOptions, runtime: Runtime) -> Remains:
    """Give what was tried for a Trans-Net before an interruption, in a file beside its own."""
    identity = {"settings": member.settings, "images": dict(member.images)}
    return Remains(
        member.path.with_name(f"{member.path.name}.trials"),
        identity | {"source": member.source.to_record()},
        active=runtime.is_main,
        taken_up=output.resume == "auto" and not output.restart,
    )


def find_end(
    fit: FitOptions,
    group: Group,
    kind: Kind,
    source: Source,
    pairs: Pairs,
    remains: Remains,
    runtime: Runtime,
) -> Group:
    """Find the steps and spare channels that a Trans-Net needs; see `converge`.

    `remains` keeps what was tried.
    """
    (member,) = group.members
    make = partial(make_trans_net, fit, kind, source)

    def remember(steps: int, hidden: int, measure: Callable[[], Interval]) -> Interval:
        name = f"{steps} steps, {hidden} spare channels"
        return Interval(**remains.get(name, lambda: asdict(measure())))

    convergence = converge(
        make,
        pairs,
        group.budget,
        runtime,
        hidden=member.trans_net.hidden,
        backwards=kind.reverse,
        alpha=member.alpha,
        tolerance=fit.tolerance,
        remember=remember,
        remains=remains,
    )
    return Group(
        [replace(member, trans_net=make(convergence.hidden))],
        replace(group.budget, steps=convergence.steps),
        [convergence.record()],
    )


def fit_group(
    group: Group,
    fit: FitOptions,
    kept: KeptOptions,
    output: OutputOptions,
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
        reference=not fit.no_reference,
    )
    # From where the checkpoints are; --start_epoch, an option of the released code, overrules them.
    start_epoch = (
        restore(members, fitting.fit) if output.start_epoch is None else output.start_epoch
    )
    fitting.ridges = [(member.state.get("fitted") or {}).get("ridge") for member in members]
    count = len(fitting.rates)
    fitting.begin(start_epoch=start_epoch)

    def save_all(
        epoch: int,
        held_out: Sequence[float],
        errors: Sequence[float] = (),
        midway: dict[str, Any] | None = None,
    ) -> None:
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
        copies = bool(epoch) and kept.save_per_epoch and not midway
        facts = [one | (midway or {}) for one in facts]
        save(members, fitting.fit, epoch, facts, keep=output.keep, copies=copies)
        for member, log in zip(members, logs):
            log.saved(member.path, epoch, midway["midway"]["step"] if midway else 0)

    def save_midway(record: dict[str, Any]) -> None:
        names = [member.path.name for member in members]
        save_all(record["epoch"], [], midway={"midway": record | {"members": names}})

    with contextlib.ExitStack() as stack:
        logs = [
            stack.enter_context(one.log(output.out, count, start_epoch, runtime, **doubts))
            for one in members
        ]
        stack.enter_context(saved_midway(fitting.fit, save_midway))
        held_out = list[float]()
        # Without epochs the closed form is all, and it is saved here.
        if not count:
            held_out = fitting.instabilities()
            save_all(0, held_out)
        for epoch, metrics in fitting.epochs(start_epoch, save_midway):
            # Measure: Var(x_Δ)/Var(x*) on images that are not fitted.
            measured = due(epoch, kept.val_epoch, count)
            held_out = fitting.instabilities() if measured else []
            errors = [of_member(metrics, i)["MSE"] for i in range(len(members))]
            for i, (member, log) in enumerate(zip(members, logs)):
                reference = references[member.reverse].record()
                of_this = of_member(metrics, i) | {"lr": fitting.rates[epoch][0]}
                of_this |= {"linear_reference": reference["instability"]} if reference else {}
                of_this |= {"val_instability": held_out[i]} if held_out else {}
                log.write(epoch, of_this, fitting.words(i, of_this))
                if kept.draw and measured:
                    data = sources[member.reverse].data
                    pair = sources[member.reverse].read(*runtime.to_device(data.__getitems__([0])))
                    log.figure(
                        epoch, "components", decomposition_figure(member.trans_net.eval(), *pair)
                    )
            # Save all of them together, so that they can go on together.
            if due(epoch, kept.save_epoch, count) or any(log.overdue for log in logs):
                save_all(epoch + 1, held_out, errors)
                fitting.fit.midway.record = None  # it is saved
    for i, (member, log) in enumerate(zip(members, logs)):
        reference = references[member.reverse].record()
        words = closing_words(
            fitting.record(i, records[i]), held_out[i] if held_out else None, reference, **doubts
        )
        copies = f", every saved epoch in {member.copy_of('…').name}" if kept.save_per_epoch else ""
        runtime.say(f"saved {member.path}{copies}; {words}; the log is {log.path}")


def unfinished_groups(
    fit: FitOptions,
    budget: Budget,
    members: Sequence[Member],
    images: int,
    start_epoch: int | None,
    runtime: Runtime,
) -> list[Group]:
    """Give the groups of Trans-Nets that have epochs to train; say which have none.

    Args:
        fit: the options of the fit.
        budget: of each.
        members: all Trans-Nets of this run.
        images: how many are fitted, which says how many epochs a budget in steps has.
        start_epoch: in place of the checkpoints' epoch.
        runtime: says a line once.
    """
    groups = list[Group]()
    for one in group(fit, budget, members):
        first = one.members[0]
        count = len(one.budget.rates(one.budget.batches(images, runtime.world_size)))
        done = first.state.get("epoch", 0) if start_epoch is None else start_epoch
        if first.resumed and not seeks_its_end(fit, one) and done >= count:
            runtime.say(f"{first.path} is fitted for {done} epochs already")
        else:
            groups.append(one)
    return groups


def open_pairs(
    data: DataOptions,
    features: Source,
    val_features: Source | None,
    parts: tuple[Tensor, Tensor],
    runtime: Runtime,
) -> Pairs:
    """Make the loaders of what is fitted, and of what instabilities are measured on.

    Args:
        data: the batch size.
        features: of the training images.
        val_features: of the validation images; None: there are none.
        parts: the numbers of the training images that are fitted, int64 (N,), and of those that
            are held out in place of validation images.
        runtime: device and processes.
    """
    fitted, held_out = parts
    load = partial(opening.loader, data, runtime=runtime)
    unseen = load(val_features.data) if val_features else None
    unseen = load(features.data, numbers=held_out) if len(held_out) else unseen
    return Pairs(
        lambda numbers, shuffle: load(features.data, numbers=numbers, shuffle=shuffle),
        features.read,
        fitted,
        unseen,
    )


def fit_groups(
    groups: Sequence[Group],
    members: Sequence[Member],
    fit: FitOptions,
    kept: KeptOptions,
    output: OutputOptions,
    pairs: Pairs,
    sources: Mapping[bool, Source],
    throughs: Mapping[bool, nn.Module],
    doubts: Mapping[str, Any],
    runtime: Runtime,
) -> None:
    """Fit group by group; the linear reference of a direction is solved once for all of them.

    Args:
        groups: of Trans-Nets.
        members: all Trans-Nets of this run, in the order of `fit.kinds`.
        fit: what they are made of.
        kept: what is kept, and how often.
        output: where.
        pairs: what is fitted, and measured on.
        sources: the features, by whether the direction is B → A.
        throughs: of --match penultimate, the frozen layers behind the target, by direction.
        doubts: about the nets, for logs and checkpoints.
        runtime: device, processes, precision.
    """
    kind_of = {member.path: kind for member, kind in zip(members, fit.kinds)}
    references = dict[bool, Beside]()
    for one in groups:
        at_end, remains = one, trials_of(one.members[0], output, runtime) if fit.until else None
        if remains and seeks_its_end(fit, one):
            kind = kind_of[one.members[0].path]
            at_end = find_end(fit, one, kind, sources[kind.reverse], pairs, remains, runtime)
        fit_group(at_end, fit, kept, output, pairs, sources, references, throughs, doubts, runtime)
        if remains:
            remains.remove()  # the checkpoint has them


def alike_in(kind: Kind, members: Sequence[Member]) -> list[Any]:
    """Give the files of the Trans-Nets that differ in depth alone from those of a kind."""
    alike = {"reverse": kind.reverse, "initial_seed": kind.seed}
    # Adding what a file says already changes nothing.
    return [member.path for member in members if member.settings | alike == member.settings]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the step."""
    parser = build_parser()
    args = parser.parse_args(argv)
    reading, layers = ReadOptions.of(args), LayerOptions.of(args)
    fit, output = FitOptions.of(args), OutputOptions.of(args)
    runtime = opening.start(RunOptions.of(args), output)
    # The features, stored or computed from images as they are read.
    nets = open_nets(reading, layers)
    data = DataOptions.of(args, *(net.data for net in nets))
    label = layers_of(layers)[-1]
    features, val_features = open_sources(
        live_opener(nets, label, data, runtime)
        if nets
        else partial(open_stored, reading=reading, layers=layers, label=data.label, output=output),
        validate=reading.validate,
    )
    # The Trans-Nets: every direction, depth and seed that the options ask for.
    sources = {reverse: features.reversed() if reverse else features for reverse in fit.directions}
    unsaid = {
        "dataset": data.label,
        "arch": reading.arch or options.ARCH,
        "sample_num": data.sample_num,
        "label": label,
    }
    members = open_members(sources, fit, output, options.settings(args), unsaid)
    # Some fitted images are held out where no validation features are there to measure on.
    parts = hold_out(len(features.data), 0 if val_features else reading.hold_out)
    groups = unfinished_groups(
        fit, Budget.of(vars(args)), members, len(parts[0]), output.start_epoch, runtime
    )
    if not groups:
        return

    # Say what a pass costs where features are computed, not read.
    if nets:
        runtime.say(
            costs(
                features.shapes,
                len(features.data),
                head_flops(features.provenance, reading.archs),
            )
        )
    # Nothing is left to refuse: decode the images, if there are some.
    features = opening.with_decoded(data, features, runtime)
    val_features = val_features and opening.with_decoded(data, val_features, runtime)
    sources = {reverse: source._replace(data=features.data) for reverse, source in sources.items()}
    pairs = open_pairs(data, features, val_features, parts, runtime)
    # Say what is fitted, and what is doubtful about its nets.
    runtime.say(
        f"{' → '.join(map(str, sources[fit.directions[0]].shapes))}, layers {fit.layers},"
        f" {len(parts[0]):,} images: {members[0].path}"
    )
    doubts = opening.say_doubts(data, val_features or features, runtime)
    # With --match penultimate the loss is taken behind the target net's frozen layers.
    throughs = {
        reverse: open_penultimate(source, reading.archs[1 - reverse]).to(runtime.device)
        for reverse, source in sources.items()
        if fit.match == "penultimate"
    }
    fit_groups(
        groups,
        members,
        fit,
        KeptOptions.of(args),
        output,
        pairs,
        sources,
        throughs,
        doubts,
        runtime,
    )
    # Variance.py finds the other direction beside the first one.
    kind = fit.kinds[0]
    trans_nets = alike_in(kind, members)
    runtime.say_next(
        "Variance.py",
        *fit_options.again(
            parser,
            reading,
            layers,
            data,
            sources[kind.reverse].provenance,
            features.folder,
            reverse=kind.reverse,
            has_val=bool(val_features),
        ),
        *parser.again(options.MACHINE, args),
        "--json",
        runs.report_folder(output.out, trans_nets[0]) / "variance.json",
        "--transnet",
        *trans_nets,
    )


if __name__ == "__main__":
    main()
