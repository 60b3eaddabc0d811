"""The power of the gate: how often harmless changes of a net fail, and how often harm is caught.

    python -m benchmarks.bench_gate FOLDER --lines FILE.jsonl

A published ResNet-56 of CIFAR-10 is changed and compared with itself, with the features in memory.
Harm costs at most half a point of accuracy on the held-out images: where a draw costs more, it is
halved, and drawn anew. Every draw is one line of FILE.jsonl; what stands there is not drawn again.
Beside the gate stand an interval of the difference in accuracy, McNemar's exact test of the flips,
and each part of the gate alone. Layers before the first change are compared once. Prints Markdown.
"""

import argparse
import contextlib
import copy
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks import zoo
from benchmarks.machine import ran_on
from consistency.bootstrap import accuracy
from consistency.compared import ComparedImages, ComparedLayer, ComparedNet, equality
from consistency.comparison import Comparing, Effort, Work, direction_entry, shared_of
from consistency.gate import Policy, Verdict, decide, mcnemar
from utils.features.layers import averaged
from utils.kept import Kept

FIT, HELD = 20, 100  # images a class: that regressions are fitted to, and held out
STAGES, SIDE = 3, 8  # and positions to a side, to which maps are averaged as Compare.py does
MOST_COST = 0.5  # points of accuracy
EFFORT = Effort(shuffles=1, resamples=1000, knowledge=None)
LEVEL = 0.05  # of the tests beside the gate


class Change(NamedTuple):
    """A net that was changed, and how many of its stages are as they were."""

    net: zoo.Staged
    kept_stages: int


@dataclass
class Seen:
    """What a net makes of the images.

    Attributes:
        maps: behind each stage, of fitted and of held-out images.
        logits: of the held-out images.
        identities: of each stage's maps: what is as it was has the old net's.
    """

    maps: list[tuple[Tensor, Tensor]]
    logits: Tensor
    identities: list[str]


# Harmless changes: the function stays the same.


def permuted(net: zoo.Staged, generator: torch.Generator) -> Change:
    """Bring the channels of every layer into another order.

    A shortcut that pads puts its input's channels in the middle of its output's, so the order of a
    stage's stream is given there by the stage before.
    """
    net = copy.deepcopy(net)

    # Rows of a weight are a layer's outputs; BatchNorm's vectors go with them. Scalars (the
    # counter) stay.
    def reorder(layer: nn.Module, order: Tensor) -> None:
        for value in (*layer.parameters(), *layer.buffers()):
            if value.ndim:
                value.data = value.data[order]

    stream = torch.randperm(16, generator=generator)
    for layer in (net.stages[0][0], net.stages[0][1]):  # type: ignore[index]
        reorder(layer, stream)
    for block in _blocks(net):
        before, width = stream, block.conv2.out_channels
        if block.more:
            # The channels that the shortcut pads with zeros, whose places may change among
            # themselves
            outer = torch.cat([torch.arange(block.more), torch.arange(width - block.more, width)])
            outer = outer[torch.randperm(len(outer), generator=generator)]
            # Between them the stream comes in the order that the stage before gave it.
            stream = torch.cat([outer[: block.more], block.more + before, outer[block.more :]])
        inner = torch.randperm(block.conv1.out_channels, generator=generator)
        # Rows in the order of the outputs, columns in that of the inputs.
        block.conv1.weight.data = block.conv1.weight.data[inner][:, before]
        block.conv2.weight.data = block.conv2.weight.data[stream][:, inner]
        reorder(block.bn1, inner)
        reorder(block.bn2, stream)
    net.fc.weight.data = net.fc.weight.data[:, stream]
    return Change(net, 0)


def folded(net: zoo.Staged, generator: torch.Generator) -> Change:
    """Fold every BatchNorm into its convolution, after another order of the channels."""
    net = permuted(net, generator).net
    stem = net.stages[0]
    assert isinstance(stem, nn.Sequential)
    stem[0], stem[1] = fuse_conv_bn_eval(stem[0], stem[1]), nn.Identity()  # type: ignore[type-var, arg-type]
    for block in _blocks(net):
        for number in (1, 2):
            pair = [getattr(block, f"{name}{number}") for name in ("conv", "bn")]
            setattr(block, f"conv{number}", fuse_conv_bn_eval(*pair))
            setattr(block, f"bn{number}", nn.Identity())
    return Change(net, 0)


def halved(net: zoo.Staged, generator: torch.Generator) -> Change:
    """Store the weights in float16, after another order of the channels."""
    return Change(_stored(permuted(net, generator).net, torch.float16), 0)


def rounded(net: zoo.Staged, generator: torch.Generator) -> Change:
    """Store the weights in float16, where they are."""
    return Change(_stored(net, torch.float16), 0)


def rounded_more(net: zoo.Staged, generator: torch.Generator) -> Change:
    """Store the weights in bfloat16."""
    return Change(_stored(net, torch.bfloat16), 0)


def quantised(net: zoo.Staged, generator: torch.Generator) -> Change:
    """Round each filter's weights to 255 levels."""
    net = copy.deepcopy(net)
    for weight in [*_weights(_blocks(net)), net.fc.weight]:
        # Levels −127 … 127 of each filter's largest weight
        step = weight.data.flatten(1).abs().amax(1).reshape(-1, *[1] * (weight.ndim - 1)) / 127
        weight.data = (weight.data / step).round() * step
    return Change(net, 0)


def saved_again(net: zoo.Staged, generator: torch.Generator) -> Change:
    """Write the weights to a file and read them again."""
    other = copy.deepcopy(net)
    torch.save(net.state_dict(), buffer := io.BytesIO())
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    return Change(other, STAGES)


def _stored(net: zoo.Staged, dtype: torch.dtype) -> zoo.Staged:
    net = copy.deepcopy(net)
    state = {
        name: value.to(dtype).to(value.dtype) if value.is_floating_point() else value
        for name, value in net.state_dict().items()
    }
    net.load_state_dict(state)
    return net


# Harm, of a severity that begins at 1 and is halved where it costs too much accuracy.


def damaged_rows(net: zoo.Staged, generator: torch.Generator, severity: float) -> Change:
    """Add noise to one class's row of the last layer, of as much deviation as the weights have."""
    net = copy.deepcopy(net)
    row = int(torch.randint(10, (), generator=generator))
    weight = net.fc.weight.data
    weight[row] += severity * weight.std() * torch.randn(weight.shape[1], generator=generator)
    return Change(net, STAGES)


def silenced(net: zoo.Staged, generator: torch.Generator, severity: float) -> Change:
    """Silence eight neighbouring channels inside a block of the last stage."""
    net = copy.deepcopy(net)
    block = _last_blocks(net)[int(torch.randint(9, (), generator=generator))]
    count = max(1, round(8 * severity))
    first = int(torch.randint(64 - count + 1, (), generator=generator))
    for value in (block.bn1.weight, block.bn1.bias):
        value.data[first : first + count] = 0
    return Change(net, STAGES - 1)


def noisy(net: zoo.Staged, generator: torch.Generator, severity: float) -> Change:
    """Add noise to the last stage's weights, of a tenth of their deviation."""
    net = copy.deepcopy(net)
    for weight in _weights(_last_blocks(net)):
        weight.data += (
            0.1 * severity * weight.std() * torch.randn(weight.shape, generator=generator)
        )
    return Change(net, STAGES - 1)


def pruned_late(net: zoo.Staged, generator: torch.Generator, severity: float) -> Change:
    """Remove 30 % of each layer of the last stage: the smallest, their sizes jittered by a tenth."""
    net = copy.deepcopy(net)
    _prune(_weights(_last_blocks(net)), generator)
    return Change(net, STAGES - 1)


def pruned(net: zoo.Staged, generator: torch.Generator, severity: float) -> Change:
    """Remove 30 % of each layer of all stages."""
    net = copy.deepcopy(net)
    _prune(_weights(_blocks(net)), generator)
    return Change(net, 0)


def _prune(weights: Sequence[Tensor], generator: torch.Generator) -> None:
    for weight in weights:
        size = weight.data.abs() * (1 + 0.1 * torch.randn(weight.shape, generator=generator))
        # The 30 % smallest of the layer
        least = size.flatten().kthvalue(round(0.3 * weight.numel())).values
        weight.data[size <= least] = 0


def _blocks(net: zoo.Staged) -> list[zoo.Block]:
    return [module for module in net.modules() if isinstance(module, zoo.Block)]


def _last_blocks(net: zoo.Staged) -> list[zoo.Block]:
    return [module for module in net.stages[-1].modules() if isinstance(module, zoo.Block)]


def _weights(blocks: Sequence[zoo.Block]) -> list[Tensor]:
    return [layer.weight for block in blocks for layer in (block.conv1, block.conv2)]


HARMLESS: dict[str, Callable[..., Change]] = {
    "channels permuted": permuted,
    "BatchNorm folded, permuted": folded,
    "float16, permuted": halved,
    "float16": rounded,
    "saved again": saved_again,
}
HARM: dict[str, Callable[..., Change]] = {
    "one class's row damaged": damaged_rows,
    "block of channels silenced": silenced,
    "noise": noisy,
    "30 % pruned, last stage": pruned_late,
    "30 % pruned, all stages": pruned,
}
# Neither: what a gate says of them is a policy's choice.
OTHER: dict[str, Callable[..., Change]] = {
    "bfloat16": rounded_more,
    "8 bits a weight, by filter": quantised,
}
ONCE = ("float16", *OTHER)  # the same in every draw


class Bench:
    """The old net, the images, and what is compared once.

    Args:
        folder: with `zoo` and `CIFAR10_mini`.
        kept: for what is compared once.
    """

    def __init__(self, folder: Path, kept: Path) -> None:
        (file,) = (folder / "zoo/resnet_cifar").glob("resnet56-*.th")
        self.net = zoo.load_resnet(file, 56)
        parts = [
            zoo.pictures(folder / "CIFAR10_mini", split, count)
            for split, count in (("train", FIT), ("val", HELD))
        ]
        self.pixels = [zoo.normalised(pixels, zoo.IMAGENET) for pixels, _ in parts]
        classes = [str(number) for number in range(10)]
        self.images = ComparedImages(parts[0][1], parts[1][1], classes)
        self.kept = Kept(kept)
        self.old = self.see(Change(self.net, 0), None, "old")

    @torch.no_grad()
    def see(self, change: Change, old: Seen | None, identity: str) -> Seen:
        """Compute what a net makes of the images, from its first changed stage on."""
        maps = [] if old is None else list(old.maps[: change.kept_stages])
        names = [] if old is None else list(old.identities[: change.kept_stages])
        sides = list(maps[-1]) if maps else self.pixels
        for stage in list(change.net.stages)[len(maps) :]:
            sides = [torch.cat([stage(part) for part in side.split(zoo.BATCH)]) for side in sides]
            maps.append((sides[0], sides[1]))
            names.append(f"{identity} {len(maps)}")
        return Seen(maps, change.net.fc(maps[-1][1].mean((2, 3))), names)

    def hits(self, seen: Seen) -> Tensor:
        """Say which held-out images a net has right."""
        return seen.logits.argmax(1) == self.images.held_out

    def cost(self, seen: Seen) -> float:
        """Give the accuracy that was lost, in points."""
        lost = self.hits(self.old).double().mean() - self.hits(seen).double().mean()
        return 100 * float(lost)

    def compared(self, label: str, seen: Seen) -> ComparedNet:
        """Give a net as a comparison takes it."""
        layers = []
        for number, (maps, identity) in enumerate(zip(seen.maps, seen.identities), 1):
            fitted, held_out = (averaged(of_split, (SIDE, SIDE)) for of_split in maps)
            shape, depth = tuple(maps[1].shape[1:]), number / STAGES
            layers.append(
                ComparedLayer(f"stage{number}", number, depth, shape, fitted, held_out, identity)
            )
        return ComparedNet(label, label, {}, seen.logits, layers)

    def verdict(self, change: Change, seen: Seen, policy: Policy) -> Verdict:
        """Compare the old net with a new one, and decide."""
        nets = self.compared("A", self.old), self.compared("B", seen)
        comparing = Comparing(*nets, self.images, EFFORT, Work(kept=self.kept))
        pairs = []
        for a, b in comparing.matched:
            forth, back = comparing.direction(0, a, b), comparing.direction(1, b, a)
            pair: dict[str, Any] = {"a": a.record(), "b": b.record()}
            pair |= {"forth": direction_entry(forth), "back": direction_entry(back)}
            pairs.append(pair | {"shared": vars(shared_of(forth, back, EFFORT))})
        weights = equality(self.net.state_dict(), change.net.state_dict())
        report = {"nets": ["A", "B"], "pairs": pairs, "weights": weights}
        report |= {"images": {"classes": self.images.classes}}
        return decide(report, policy, (self.old.logits, seen.logits), self.images.held_out)


class Drawn(NamedTuple):
    """What one changed net gave; plain values, a line of the file.

    Attributes:
        kind: of the change.
        seed: of the draw.
        verdict: "pass", "cannot say" or "knowledge lost".
        unchanged: nothing changed, the gate says.
        by: which parts of the gate found that knowledge was lost: "features", "answers".
        cost: points of accuracy.
        accuracy_tells: the interval of the difference in accuracy is above 0.
        mcnemar_tells: there are more negative than positive flips by McNemar's exact test.
        lost: most of a stage, and of the bits of answers.
        seconds: of the processor.
    """

    kind: str
    seed: int
    verdict: str
    unchanged: bool
    by: list[str]
    cost: float
    accuracy_tells: bool
    mcnemar_tells: bool
    lost: dict[str, float]
    seconds: float


PARTS = ("features", "answers")  # beginnings of the names of the gate's checks


def draw(bench: Bench, kind: str, seed: int, policy: Policy) -> Drawn:
    """Change the net, compare it, and decide."""
    generator, severity = torch.Generator().manual_seed(seed), 1.0
    began = time.process_time()
    while True:
        is_harm = kind in HARM
        change = (
            HARM[kind](bench.net, generator, severity)
            if is_harm
            else {**HARMLESS, **OTHER}[kind](bench.net, generator)
        )
        seen = bench.see(change, bench.old, f"{kind} {seed}")
        cost = bench.cost(seen)
        if not is_harm or cost <= MOST_COST:
            break
        severity /= 2
    verdict = bench.verdict(change, seen, policy)
    hits = [bench.hits(part) for part in (bench.old, seen)]
    interval = accuracy(*(part.double().numpy() for part in hits))
    # What only the old net has right, and what only the new one has
    negative, positive = (int((hits[i] & ~hits[1 - i]).sum()) for i in (0, 1))
    return Drawn(
        kind,
        seed,
        verdict.verdict,
        verdict.unchanged,
        [part for part in PARTS if is_lost(verdict, part)],
        cost,
        interval.low is not None and interval.low > 0,
        negative > positive and mcnemar(negative, positive) < LEVEL,
        {part: most_lost(verdict, part) for part in PARTS},
        time.process_time() - began,
    )


def is_lost(verdict: Verdict, part: str) -> bool:
    """Say whether a part of the gate found that knowledge was lost."""
    return any(
        check.verdict == "knowledge lost" and check.name.startswith(part)
        for check in verdict.checks
    )


def most_lost(verdict: Verdict, part: str) -> float:
    """Give the most that a part of the gate found lost: 1 less its smallest number."""
    values = [
        check.value.value
        for check in verdict.checks
        if check.name.startswith(part) and check.value and check.value.value is not None
    ]
    return 1 - min(values)


def row(kind: str, draws: Sequence[Drawn]) -> str:
    """Lay out what the draws of a kind gave."""

    def percent(tells: Iterable[bool]) -> str:
        return f"{100 * np.mean(list(tells)):.0f}"

    cells = [kind, str(len(draws))]
    for outcome in ("pass", "cannot say", "knowledge lost"):
        cells.append(percent(drawn.verdict == outcome for drawn in draws))
    cells.append(percent(drawn.unchanged for drawn in draws))
    cells += [percent(part in drawn.by for drawn in draws) for part in PARTS]
    cells.append(percent(drawn.accuracy_tells for drawn in draws))
    cells.append(percent(drawn.mcnemar_tells for drawn in draws))
    costs = [drawn.cost for drawn in draws]
    cells.append(f"{min(costs):+.2f} … {max(costs):+.2f}")
    for part in PARTS:
        lost = [drawn.lost[part] for drawn in draws]
        cells.append(f"{min(lost):.1e} … {max(lost):.1e}")
    return f"| {' | '.join(cells)} |"


def read_lines(file: Path) -> dict[tuple[str, int], Drawn]:
    """Read the draws of earlier runs, by kind and seed; a line that was cut off is left out."""
    draws = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            drawn = Drawn(**json.loads(line))
            draws[drawn.kind, drawn.seed] = drawn
    return draws


HEAD = """\
| change | draws | pass, % | cannot say, % | knowledge lost, % | nothing changed, % | by features, % | by answers, % | \
accuracy's interval, % | McNemar, % | accuracy lost, points | most of a stage lost | bits of answers lost |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"""


def main(argv: list[str] | None = None) -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where zoo/ and CIFAR10_mini/ lie")
    parser.add_argument("--draws", type=int, default=100, help="of each kind of change")
    parser.add_argument(
        "--lines", type=Path, required=True, metavar="FILE", help="one JSON line a draw"
    )
    every = (*HARMLESS, *HARM, *OTHER)
    parser.add_argument(
        "--kinds", nargs="+", choices=every, default=list(every), metavar="KIND", help="of changes"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    where = ran_on(__file__, argv, "torch", "scipy")
    policy, draws = Policy(), read_lines(args.lines)
    # All kinds of a seed before the next seed, so that a run that is stopped has as many of each.
    wanted = [
        (kind, seed)
        for seed in range(args.draws)
        for kind in args.kinds
        if seed == 0 or kind not in ONCE
    ]
    if missing := [key for key in wanted if key not in draws]:
        with tempfile.TemporaryDirectory() as kept, args.lines.open("a") as file:
            bench = Bench(args.folder, Path(kept))
            for kind, seed in missing:
                drawn = draws[kind, seed] = draw(bench, kind, seed, policy)
                file.write(json.dumps(drawn._asdict()) + "\n")
                file.flush()
    print(f"Policy {policy.record()}\n\n{HEAD}")
    for kind in every:
        if of_kind := [drawn for drawn in draws.values() if drawn.kind == kind]:
            print(row(kind, of_kind))
    seconds = sum(drawn.seconds for drawn in draws.values())
    print(f"\n{seconds:.0f} s of the processor. {where}")


if __name__ == "__main__":
    main()
