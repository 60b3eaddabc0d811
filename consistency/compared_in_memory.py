"""`consistency.compare`: two nets and a loader, without files."""

import copy
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from consistency.class_gaps import LEAST_REFERENCES
from consistency.compared import (
    ComparedImages,
    ComparedLayer,
    ComparedNet,
    parameters_of,
)
from consistency.compared_nets import (
    Place,
    Survey,
    kept_size,
    layout_of,
    matched_places,
    same_places,
)
from consistency.comparison import Comparing, Effort, Work
from consistency.comparison_report import Comparison, make_record, weights_of
from consistency.solved import Thorough
from models.classifiers import last_layer, read_classifier
from models.cut_net import CutNet, stand_in_pixels
from models.layers import Layer
from models.split import as_maps
from models.tail import FrozenTail
from utils.data.images import held_out_images
from utils.errors import InputError
from utils.features.layers import averaged
from utils.provenance import NetSource
from utils.runtime import Runtime


def compare(
    net_a: nn.Module | str | Path,
    net_b: nn.Module | str | Path,
    loader: Iterable[Any],
    *,
    layers: Sequence[str] | None = None,
    layers_b: Sequence[str] | None = None,
    held_out: ArrayLike | None = None,
    classes: Sequence[str] | None = None,
    arch_a: str | None = None,
    arch_b: str | None = None,
    references: Sequence[nn.Module | str | Path] = (),
    arch_references: str | None = None,
    quick: bool = False,
    thorough: bool = False,
    depth: int = Thorough.layers,
    permutations: int = 0,
    resamples: int = 1000,
    side: int = 8,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Comparison:
    """Compare two nets: what both compute, at the ends of their stages, in both directions.

    Both see every image once; all features stay in memory. `Compare.py` does the same from files,
    and keeps what it computes.

        >>> import consistency
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
        >>> images, labels = torch.randn(80, 3, 8, 8), torch.arange(80) % 2
        >>> loader = zip(images.split(20), labels.split(20))
        >>> report = consistency.compare(net, net, loader, layers=["1"], resamples=100)
        >>> report.record["weights"], round(report.record["pairs"][0]["shared"]["value"], 3)
        ('equal', 1.0)

    Args:
        net_a: images (N, 3, S, S) → logits (N, C), or the path of a checkpoint. It stays as it is.
        net_b: the same.
        loader: batches that begin with images (n, 3, S, S), float32, normalised as both nets take
            them, and then the classes, integers (n,), if they are known. It is read once, so it may
            be shuffled.
        layers: names of modules or nodes, or "stage:N"; None: the ends of all stages.
        layers_b: those of net B, where they differ; pairs are by their place.
        held_out: True for images that are judged, bool (N,) in the loader's order; the others are
            fitted. None: every second image of each class.
        classes: their names.
        arch_a: A's architecture, where a checkpoint does not say it.
        arch_b: B's.
        references: nets of B's recipe from other seeds, none or two or more: a pair of classes is
            called where A loses more of it than they do.
        arch_references: theirs; None: B's.
        quick: leave the nulls out; class means take their place.
        thorough: fit solved Trans-Nets beside the linear references, up to their end.
        depth: of these, K + 1 linear layers; 2 or more.
        permutations: for the p-values; 0: none.
        resamples: of the held-out images.
        side: maps of more positions are averaged to side × side; 0: never.
        seed: of all that is drawn.
        device: that computes the nets' features.

    Returns:
        The report: `.table()`, `.figure()`, `.save(folder)`, and all numbers in `.record`.

    Raises:
        InputError: there are no such layers, too few images, one reference, or values that are not
            finite; or options contradict each other.
    """
    if thorough and (quick or depth < 2):
        raise InputError(
            f"thorough=True needs nulls and a depth of 2 or more, not quick={quick}, depth={depth}"
        )
    if 0 < len(references) < LEAST_REFERENCES:
        raise InputError(
            f"{len(references)} reference net does not say what differs between seeds; give"
            f" {LEAST_REFERENCES} or more, or none"
        )
    device = torch.device(device)
    # The first batch says the size of the images, at which both nets are cut.
    batches = iter(loader)
    first = next(batches, None)
    if first is None:
        raise InputError("the loader gave no batch; give batches of images (n, 3, S, S)")
    size = _images_of(first).shape[-1]
    archs = [arch_a, arch_b, *[arch_references or arch_b] * len(references)]
    opened = [_open(net, arch, size) for net, arch in zip((net_a, net_b, *references), archs)]
    surveys = [of for of, _ in opened]
    places, note = matched_places(surveys[:2], layers, layers_b)
    # References are of B's recipe: their layers are where B's are.
    places += [same_places(of, places[1]) for of in surveys[2:]]
    passed = [
        _Passed(model, of, of_net, side, device) for (of, model), of_net in zip(opened, places)
    ]
    # One pass over the loader: every batch goes through all nets.
    labels = list[Tensor]()
    for batch in (first, *batches):
        images = _images_of(batch)
        for one in passed:
            one.add(images)
        # Without classes all images are of one.
        given = None if isinstance(batch, Tensor | np.ndarray) else [*batch][1:2]
        labels.append(
            torch.as_tensor(given[0]).long() if given else torch.zeros(len(images)).long()
        )
    targets = torch.cat(labels)
    if targets.ndim != 1:
        raise InputError("the loader must give one class an image, integers (n,)")
    # Some images are fitted, the others are judged.
    is_held_out = held_out_images(held_out, targets)
    names = classes or [str(label) for label in range(int(targets.max()) + 1)]
    of_images = ComparedImages(
        targets[~is_held_out], targets[is_held_out], names, notes=[note] if note else []
    )
    # Two nets of one architecture get letters for names.
    nets = [one.net(label, is_held_out, names) for label, one in zip("AB", passed)]
    of_references = [
        one.net(f"B{number}", is_held_out, names) for number, one in enumerate(passed[2:], 1)
    ]
    if nets[0].name == nets[1].name:
        nets[0].name, nets[1].name = "A", "B"
    effort = Effort(
        shuffles=0 if quick else Effort.shuffles,
        permutations=permutations,
        resamples=resamples,
        seed=seed,
        similar_permutations=0 if quick else Effort.similar_permutations,
    )
    # Measure, and write down what was compared with which effort.
    work = Work()
    runtime = Runtime(device, (), 0, 1, None, False, seed)
    how = Thorough(depth, seed=seed, runtime=runtime) if thorough else None
    comparing = Comparing(nets[0], nets[1], of_images, effort, work, of_references, how)
    pairs = comparing.pairs()
    figures, pictures = comparing.picture()
    record = make_record(
        nets,
        of_images,
        pairs=pairs,
        weights=weights_of(*nets),
        parts=work.parts,
        command="consistency.compare",
        resamples=resamples,
        seed=seed,
        references=of_references,
        pictures=pictures,
    )
    logits = {net.label: net.logits for net in nets}
    return Comparison(record, logits, of_images.held_out, maps=comparing.maps, pictures=figures)


def _images_of(batch: Any) -> Tensor:
    images = torch.as_tensor(batch if isinstance(batch, Tensor | np.ndarray) else next(iter(batch)))
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise InputError(
            "the loader must give batches that begin with square images (n, 3, S, S), not"
            f" {tuple(images.shape)}"
        )
    return images.float()


def _open(net: nn.Module | str | Path, arch: str | None, size: int) -> tuple[Survey, nn.Module]:
    """Give what a net is, and the net itself: a copy, in evaluation mode and float32."""
    if isinstance(net, nn.Module):
        model = copy.deepcopy(net).cpu().float().eval().requires_grad_(False)
        path, name, state = type(net).__name__, type(net).__name__, dict[str, Any]()
    else:
        model, state = read_classifier(net, arch)
        path, name = str(net), state["model"]["arch"]
    layout = layout_of(model, size)
    # Two blank images: their logits (2, C) say how many classes the net tells apart.
    with torch.no_grad():
        outputs = model(torch.zeros(2, 3, size, size)).shape[1]
    return Survey.of(path, arch, name, "", "", outputs, parameters_of(model), layout, state), model


class _Passed:
    """One net, and what it gives of the images that passed it."""

    def __init__(
        self,
        model: nn.Module,
        survey: Survey,
        places: Sequence[Place],
        side: int,
        device: torch.device,
    ) -> None:
        self.model, self.survey, self.places = model, survey, places
        self.device, size = device, survey.image_size
        nodes = [Layer(place.name, image_size=size).node(model) for place in places]
        self.sources = [NetSource(survey.arch, node) for node in nodes]
        cut = CutNet(model, self.sources, {}, tapped=True)
        cut.prove_fast(stand_in_pixels(size))
        self.form = cut.frozen_form(device)
        # Positions alone; the channels stay.
        self.sizes = [kept_size(place.shape, side)[1:] for place in places]
        self.maps: list[list[Tensor]] = [[] for _ in places]
        self.logits = list[Tensor]()

    @torch.no_grad()
    def add(self, images: Tensor) -> None:
        *features, logits = self.form(images.to(self.device))
        for kept, feature, size in zip(self.maps, features, self.sizes):
            kept.append(averaged(as_maps(feature).float(), size).cpu())
        self.logits.append(logits.float().cpu())

    def net(self, label: str, is_held_out: Tensor, classes: Sequence[str]) -> ComparedNet:
        layers = []
        for number, (place, kept) in enumerate(zip(self.places, self.maps)):
            maps = torch.cat(kept)
            if not maps.isfinite().all():
                raise InputError(f"{place.name} gives values that are not finite; look at the net")
            tail, name = partial(self._tail, number), f"{label} {place.name}"
            layers.append(
                ComparedLayer(
                    place.name,
                    place.stage,
                    place.depth,
                    place.shape,
                    maps[~is_held_out],
                    maps[is_held_out],
                    name,
                    tail,
                )
            )
        facts: dict[str, Any] = {
            "checkpoint": self.survey.path,
            "sha256": None,
            "arch": self.survey.arch,
            "parameters": self.survey.parameters,
            "normalisation": None,
            "remarks": [],
        }
        return ComparedNet(
            label,
            self.survey.arch.rpartition(":")[2],
            facts,
            torch.cat(self.logits)[is_held_out],
            layers,
            knows_classes=self.survey.outputs == len(classes),
            state=self.model.state_dict,
        )

    def _tail(self, number: int) -> FrozenTail:
        # The net was proven when it was tapped: the same graph is cut here.
        cut = CutNet(self.model, self.sources[number : number + 1], {})
        shape = self.places[number].shape
        return FrozenTail(cut.tail, last_layer(self.model), shape, self.survey.outputs)
