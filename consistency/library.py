"""What `import consistency` offers: the project's science on arrays and loaders, without files.

    features(net, layer, images)               feature of every image
    fit(x, target)                             Trans-Net that reconstructs B's features from A's
    variances(trans_net, x, target)            how much each order explains of B's features
    calibrate(x, target, classes)              what an instability of these features is worth
    similarities(x, target)                    CKA and others, beside permuted images
    compare(net_a, net_b, loader)              all of it, at the ends of their stages
    kept_knowledge(tail, target, output)       how much of B's answers survives the reconstruction
    distinctions(tail, target, output, classes)   which classes B tells apart, and A does not

A feature is an array of maps (N, C, H, W), tokens (N, T, C) or vectors (N, C), of PyTorch or NumPy.
Row i of every array belongs to image i. x is A's feature and the target is B's. Whatever is drawn
at random comes from `seed`; the caller's random numbers stay as they were.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from consistency import several
from consistency.bootstrap import Interval, bootstrap
from consistency.budget import Budget
from consistency.class_gaps import Distinctions, measure_distinctions
from consistency.compared_in_memory import compare  # noqa: F401 — offered by this name
from consistency.comparison_report import Comparison  # noqa: F401
from consistency.fitting import Fitting, Pairs
from consistency.floors import class_variances
from consistency.knowledge import Knowledge, measure_knowledge
from consistency.moments import ImageMoments
from consistency.permutation import LinearCalibration, calibrate_linear
from consistency.reconstruction import Loader
from consistency.similarity import Calibrated, ImageRows, image_rows, image_similarities
from consistency.trans_nets import between, channels_of, check_fit
from models.cut_net import CutNet, open_net, stand_in_pixels
from models.layers import Layer
from models.pair import read_stored
from models.split import as_maps, from_maps
from models.trans_net import TransNet
from utils.data.images import held_out_images
from utils.data.loaders import make_loader
from utils.errors import InputError
from utils.fit_options import STEPS, spare_channels
from utils.provenance import NetSource
from utils.runtime import Runtime, seeded

BATCH = 64  # images that are computed at one time
DECADES = 1.0  # by which the learning rate of a fit falls


@torch.no_grad()
def features(
    net: nn.Module | str | Path,
    layer: str,
    images: Iterable[Any],
    *,
    arch: str | None = None,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Compute a net's feature of every image.

    The net is cut at the layer, and the cut is held against the net itself before it is used. A net
    that is given stays as it is: a copy of it is cut, in evaluation mode and float32.

        >>> import consistency
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 5))
        >>> loader = torch.randn(6, 3, 16, 16).split(2)
        >>> consistency.features(net, "1", loader).shape
        torch.Size([6, 4, 14, 14])

    Args:
        net: images (N, 3, S, S) → logits (N, C), or the path of a checkpoint that `Training.py` or
            another training script saved.
        layer: the name of a module, of another node of the traced net (`layer3.1.add`), or "stage:N":
            the end of stage N, "stage:-1" the last one. `ConvOutput.py --list_layers` prints all.
        images: batches of images (n, 3, S, S), float32, normalised as the net takes them: tensors,
            or tuples that begin with one, such as those of a loader that is not shuffled.
        arch: the checkpoint's architecture, where the file does not say it.
        device: that computes.

    Returns:
        float32 (N, C, H, W), (N, T, C) or (N, C), on the CPU, in the order of the images.

    Raises:
        InputError: there is no such layer, it is no cut, or there are no square images.
    """
    head, rows = None, []
    for batch in images:
        pixels = torch.as_tensor(batch if isinstance(batch, Tensor | np.ndarray) else batch[0])
        if pixels.ndim != 4 or pixels.shape[2] != pixels.shape[3]:
            raise InputError(
                "`images` must give batches of square images (n, 3, S, S), not"
                f" {tuple(pixels.shape)}; of one tensor give its batches, such as images.split(64)"
            )
        # The first batch says the size of the images, at which the net is cut.
        if head is None:
            head = _open(net, layer, pixels.shape[-1], arch).frozen_form(torch.device(device))
        rows.append(head(pixels.to(device, torch.float32)).float().cpu())
    if not rows:
        raise InputError("`images` gave no batch; give a loader, or a list of batches (n, 3, S, S)")
    return torch.cat(rows)


def fit(
    x: ArrayLike,
    target: ArrayLike,
    *,
    layers: int = 3,
    hidden: int | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    batch_size: int = BATCH,
    alpha: Sequence[float] | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    **config: Any,
) -> TransNet:
    """Fit a Trans-Net as `Training_TransNet.py --standardise --solve` does.

    x and the target are standardised. W(0) is solved in closed form first and last, and all else is
    trained by Muon in between. A Trans-Net that leaves more than the best single linear layer
    becomes that layer.

        >>> import consistency
        >>> x = torch.randn(80, 3, 4, 4)
        >>> target = x[:, [1, 2, 0]]  # B's channels are A's in another order
        >>> trans_net = consistency.fit(x, target, layers=1, epochs=0)
        >>> torch.allclose(trans_net(x), target, atol=0.05)
        True

    Args:
        x: A's feature, (N, C, H, W), (N, T, C) or (N, C).
        target: B's, of the same images and as many axes; its maps may have another size.
        layers: K + 1, linear layers. 1: the linear reference alone.
        hidden: M, spare channels behind x's own; None: 0 for one layer, else twice those of x, at
            most 64.
        steps: of the optimiser; None: 400, unless `epochs` are given.
        epochs: passes over the images by Adam, in place of steps; 0: the closed form alone.
        lr: the highest learning rate; None: 0.04 for steps, 0.0003 for epochs.
        batch_size: images of a step.
        alpha: weights of the penalty on p(1) … p(K), (K,); None: no penalty.
        seed: of the initialisation and of the order of images.
        device: that computes. The features stay on the CPU; a batch at a time moves.
        config: other arguments of `consistency.trans_nets.between` and `TransNet`, such as `fc` or
            `norm`.

    Returns:
        The Trans-Net on the CPU, in evaluation mode: maps (N, C, H, W) → (N, C', H', W').

    Raises:
        InputError: other images, other kinds of features, or values that are not finite.
    """
    pairs = _Pairs(x, target)
    runtime = Runtime(torch.device(device), (), 0, 1, None, False, seed)
    with seeded(seed, runtime.device), torch.enable_grad():
        # The defaults of Training_TransNet.py --standardise --solve.
        if hidden is None:
            hidden = spare_channels(channels_of(pairs.shapes[0])) if layers > 1 else 0
        trans_net = between(
            *pairs.shapes, layers=layers, hidden=hidden, **{"standardise": True} | config
        )
        if epochs is None:
            budget = Budget(
                steps=STEPS if steps is None else steps, lr=lr or 0.04, batch_size=batch_size
            )
        else:
            budget = Budget(
                optim="Adam",
                lr=lr or 3e-4,
                steps=None,
                epochs=epochs,
                logspace=DECADES,
                batch_size=batch_size,
            )
        # One standardised layer is the linear reference: nothing is left to train.
        if layers == 1 and epochs is None:
            budget = Budget(steps=0, batch_size=batch_size)  # the closed form is all of it

        def load(images: Tensor, shuffle: bool) -> Loader:
            return make_loader(
                Subset(pairs, images.tolist()), batch_size, shuffle=shuffle, seed=seed
            )

        weights = (
            torch.zeros(layers - 1) if alpha is None else torch.tensor(alpha, dtype=torch.float32)
        )
        of_all = Pairs(load, read_stored, torch.arange(len(pairs)))
        Fitting([trans_net], of_all, budget, runtime, alphas=[weights]).run()
    return trans_net.cpu().eval().requires_grad_(False)


@dataclass(frozen=True)
class Variances:
    """Var(x_Δ) / Var(x*), and what each order explains, with 95 % intervals over the images.

    Attributes:
        images: N.
        instability: Var(x_Δ) / Var(x*): 0 where A gives all of B's feature.
        shares: Var(·) / Var(x*) of "order0" … "orderK" and of "output", g(x). They need not add up
            to 1 with the instability, because orders are correlated.
    """

    images: int
    instability: Interval
    shares: Mapping[str, Interval]

    def __str__(self) -> str:
        rows = {**self.shares, "instability": self.instability}
        return "\n".join(f"{name:<12} {_words(interval)}" for name, interval in rows.items())


@torch.no_grad()
def variances(
    trans_net: TransNet, x: ArrayLike, target: ArrayLike, *, resamples: int = 1000
) -> Variances:
    """Measure how much of the target's variance each order explains (paper Sec. 4.2).

        >>> import consistency
        >>> x = torch.randn(80, 3, 4, 4)
        >>> target = x[:, [1, 2, 0]]
        >>> trans_net = consistency.fit(x[:40], target[:40], layers=1, epochs=0)
        >>> found = consistency.variances(trans_net, x[40:], target[40:], resamples=100)
        >>> found.instability.value < 0.01 and found.shares["order0"].value > 0.95
        True

    Args:
        trans_net: from `fit`, or `models.load_trans_net`; put into evaluation mode.
        x: A's feature of images that were not fitted, (N, C, H, W), (N, T, C) or (N, C).
        target: B's, of the same images.
        resamples: of the images; the intervals hold the Trans-Net as it was fitted. 0: no
            intervals.

    Raises:
        InputError: the Trans-Net maps other shapes.
    """
    pairs, device = _Pairs(x, target), trans_net.x_mean.device
    check_fit(trans_net.eval(), *pairs.shapes)
    # x(0) … x(K) and x_Δ of every image, in one pass.
    moments = ImageMoments(trans_net.constant)
    for batch in make_loader(pairs, BATCH):
        inputs, wanted = (maps.to(device) for maps in read_stored(*batch))
        output, components = trans_net.decompose(inputs)
        moments.update(components, wanted - output, batch[-1])
    numbers = bootstrap(moments.statistic(), moments.arrays(), resamples=resamples)
    shares = {
        name.removeprefix("share_"): one
        for name, one in numbers.items()
        if name.startswith("share_")
    }
    return Variances(moments.images, numbers["instability"], shares)


@dataclass(frozen=True)
class Calibration:
    """What the instability of one linear layer is worth, in both directions.

    Attributes:
        forth: of A → B: `null`, a test against permuted images, and `intervals` of the
            "instability", of pairs that share their class alone ("null"), of A → A ("ceiling"), and
            of the normalised "consistency": 0 for the null and 1 for the ceiling.
        back: of B → A.
        shared: the smaller consistency of both directions.
        floor: the instability that the true class means of B's features leave; NaN where no class
            has two held-out images.
    """

    forth: LinearCalibration
    back: LinearCalibration
    shared: Interval
    floor: float

    def __str__(self) -> str:
        rows = []
        for name, way in (("A → B", self.forth), ("B → A", self.back)):
            numbers = "".join(
                f"\n  {key:<12} {_words(interval)}" for key, interval in way.intervals.items()
            )
            rows.append(f"{name}, p = {way.null.p_value:.3g}{numbers}")
        return "\n".join(
            [*rows, f"{'shared':<14} {_words(self.shared)}", f"{'floor':<14} {self.floor:.4f}"]
        )


def calibrate(
    x: ArrayLike,
    target: ArrayLike,
    classes: ArrayLike | None = None,
    *,
    held_out: ArrayLike | None = None,
    permutations: int = 200,
    resamples: int = 1000,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Calibration:
    """Compare the linear reference with pairs that share nothing, and with A → A.

    Those pairs share nothing beyond their class.

        >>> import consistency
        >>> x, classes = torch.randn(120, 6), torch.arange(120) % 3
        >>> target = x @ torch.randn(6, 4)
        >>> found = consistency.calibrate(x, target, classes, permutations=19, resamples=100)
        >>> found.forth.null.p_value
        0.05
        >>> found.forth.intervals["consistency"].value > 0.8
        True

    Args:
        x: A's feature, (N, C, H, W), (N, T, C) or (N, C).
        target: B's, of the same images. Maps of another size are resized, x to the target's.
        classes: of the images, integers (N,); None: pairs are mixed over all images.
        held_out: True for images that are judged, bool (N,); the others are fitted. None: every
            second image of each class.
        permutations: for p.
        resamples: of the held-out images.
        seed: of all that is drawn.
        device: that computes.

    Raises:
        InputError: other images, other kinds of features, or no class with two images.
    """
    pairs = _Pairs(x, target)
    labels = _classes(classes, len(pairs))
    is_held_out = held_out_images(held_out, labels)
    # Fitted images first, held-out ones second.
    parts = ~is_held_out, is_held_out
    of_parts = [labels[chosen] for chosen in parts]

    def way(
        of_x: Tensor, of_target: Tensor, shapes: tuple[tuple[int, ...], tuple[int, ...]]
    ) -> LinearCalibration:
        # An untrained Trans-Net of one layer says the size and the kernel, and resizes x.
        mapping = between(*shapes, layers=1)
        resized = mapping.resize(of_x)
        return calibrate_linear(
            [resized[chosen] for chosen in parts],
            [of_target[chosen] for chosen in parts],
            of_parts,
            torch.Generator().manual_seed(seed),
            draws=permutations,
            resamples=resamples,
            kernel_size=mapping.config["kernel_size"],
            device=device,
        )

    maps_a, maps_b = as_maps(pairs.x), as_maps(pairs.target)
    with seeded(seed, torch.device(device)):  # `between` initialises what is not used here
        # Both ways draw the same permutations: `way` begins its generator anew.
        forth, back = way(maps_a, maps_b, pairs.shapes), way(maps_b, maps_a, pairs.shapes[::-1])
    shared = several.shared(forth.sums, back.sums, resamples=resamples, seed=seed)["shared"]
    try:
        floor = class_variances([(maps_b[is_held_out], of_parts[1])]).floor
    except InputError:
        floor = float("nan")
    return Calibration(forth, back, shared, floor)


def similarities(
    x: ArrayLike,
    target: ArrayLike,
    classes: ArrayLike | None = None,
    *,
    held_out: ArrayLike | None = None,
    permutations: int = 39,
    seed: int = 0,
) -> dict[str, Calibrated]:
    """Compute CKA, SVCCA, Procrustes, mutual nearest neighbours and ridge R², an image as a row.

    Each is held against permutations of the images within their classes; see
    `consistency.similarity`.

        >>> import consistency
        >>> x = torch.randn(120, 6)
        >>> found = consistency.similarities(x, 2 * x + 1, permutations=19)
        >>> round(found["CKA"].value, 3), found["CKA"].p
        (1.0, 0.05)

    Args:
        x: A's feature, (N, C, H, W), (N, T, C) or (N, C).
        target: B's, of the same images; any other shape.
        classes: see `calibrate`.
        held_out: the images that nets are compared on; regressions are fitted to the others. See
            `calibrate`.
        permutations: 19 or more; 0: none.
        seed: of the permutations.

    Returns:
        By the measure's name its value, what permuted images reach, and the p-value.

    Raises:
        InputError: other images, fewer than four held out, or values that are not finite.
    """
    features_a, features_b = _tensor(x), _tensor(target)
    _check_images(features_a, features_b)
    labels = _classes(classes, len(features_a))
    is_held_out = held_out_images(held_out, labels)
    rows = [image_rows(feature) for feature in (features_a, features_b)]
    net_a, net_b = (ImageRows(row[is_held_out], row[~is_held_out]) for row in rows)
    generator = torch.Generator().manual_seed(seed)
    scores = image_similarities(
        net_a, net_b, [labels[~is_held_out], labels[is_held_out]], generator, draws=permutations
    )
    return {score.name: score for score in scores}


def kept_knowledge(
    tail: nn.Module,
    target: ArrayLike,
    reconstruction: ArrayLike,
    *,
    classes: ArrayLike | None = None,
    permutations: int = 1000,
    resamples: int = 1000,
    seed: int = 0,
) -> Knowledge:
    """Measure how many bits of B's answers arrive when g(x) stands in for B's feature x*.

    The tail is what follows B's layer: `head, tail = models.split(net_b, layer)`.

        >>> import consistency
        >>> target = torch.randn(200, 6)
        >>> tail = torch.nn.Linear(6, 5)
        >>> found = consistency.kept_knowledge(tail, target, target, permutations=99, resamples=100)
        >>> round(found["share"], 3), found["agreement"]
        (1.0, 1.0)

    Args:
        tail: B's feature (n, *shape) → logits (n, classes), on the CPU; a copy of it answers, in
            evaluation mode.
        target: x*, (N, *shape).
        reconstruction: g(x), as maps (N, C, H, W) or in the target's shape.
        classes: of the images, integers (N,), for the bits that are lost in each class.
        permutations: for the p-value of ρ, what is shared beyond the class of B's answer.
        resamples: of the images.
        seed: of all that is drawn.

    Raises:
        InputError: other images or shapes, fewer than four images, or values that are not finite.
    """
    answers = _tail_answers(tail, target, [reconstruction])
    labels = None if classes is None else _classes(classes, len(answers[0]))
    # Its calibration descends a gradient, also where the caller asks for none
    with torch.enable_grad():
        return measure_knowledge(
            *answers, labels=labels, permutations=permutations, resamples=resamples, seed=seed
        )


def distinctions(
    tail: nn.Module,
    target: ArrayLike,
    reconstruction: ArrayLike,
    classes: ArrayLike | None = None,
    *,
    references: Sequence[ArrayLike] = (),
    resamples: int = 1000,
    seed: int = 0,
) -> Distinctions:
    """Measure which classes B tells apart, but not when g(x) stands in for B's feature x*.

    See `consistency.class_gaps` for the equations. Only reference nets, of B's recipe from other
    seeds, turn the order of the pairs of classes into a finding.

        >>> import consistency
        >>> classes = torch.arange(200) % 4
        >>> target = 3 * torch.eye(4)[classes] + torch.randn(200, 4)
        >>> output = target.clone()
        >>> output[:, [1, 3]] = target[:, [1, 3]].mean(1, keepdim=True)  # 1 and 3 become alike
        >>> found = consistency.distinctions(torch.nn.Identity(), target, output, classes)
        >>> found.pairs[0].first, found.pairs[0].second, round(found.pairs[0].loss.value, 3)
        (1, 3, 1.0)

    Args:
        tail: B's feature (n, *shape) → logits (n, K), on the CPU; a copy of it answers, in
            evaluation mode.
        target: x*, of held-out images, (N, *shape).
        reconstruction: g(x), as maps (N, C, H, W) or in the target's shape.
        classes: of the images, numbers of B's logits, (N,); None: B's answers serve as classes.
        references: the reconstruction from each reference net, by a map of its own: none, or two or
            more.
        resamples: of the images.
        seed: of the resamples.

    Raises:
        InputError: other images or shapes, values that are not finite, or fewer than two classes of
            five images.
    """
    logits, sent, *others = _tail_answers(tail, target, [reconstruction, *references])
    labels = None if classes is None else _classes(classes, len(logits))
    return measure_distinctions(
        logits, sent, labels, references=others, resamples=resamples, seed=seed
    )


@torch.no_grad()
def _tail_answers(
    tail: nn.Module, target: ArrayLike, reconstructions: Sequence[ArrayLike]
) -> list[Tensor]:
    """Give B's logits (N, K) of x*, and of each reconstruction of it.

    Raises:
        InputError: a reconstruction has another shape.
    """
    wanted = _tensor(target)
    features = [wanted]
    for reconstruction in reconstructions:
        output = _tensor(reconstruction)
        if output.shape != wanted.shape and output.ndim == 4:
            output = from_maps(output, tuple(wanted.shape[1:]))
        if output.shape != wanted.shape:
            raise InputError(
                f"the reconstruction must have the target's shape {tuple(wanted.shape)}, not"
                f" {tuple(output.shape)}"
            )
        features.append(output)
    tail = copy.deepcopy(tail).eval()  # the caller's stays in its mode
    # On the CPU, batch by batch
    return [torch.cat([tail(some) for some in rows.split(BATCH)]) for rows in features]


class _Pairs(Dataset[Any]):
    """Features of the same images, and their numbers.

    Raises:
        InputError: there are no pairs, of other images, or values that are not finite.
    """

    def __init__(self, x: ArrayLike, target: ArrayLike) -> None:
        self.x, self.target = _tensor(x), _tensor(target)
        _check_images(self.x, self.target)
        self.shapes = tuple(self.x.shape[1:]), tuple(self.target.shape[1:])

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, images: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Give x, the target, and the images' numbers, which fits and moments keep apart by."""
        return self.x[images], self.target[images], torch.tensor(images)


def _tensor(feature: ArrayLike) -> Tensor:
    values = torch.as_tensor(feature).detach().cpu().float()
    if not 2 <= values.ndim <= 4:
        raise InputError(
            f"a feature is (N, C, H, W), (N, T, C) or (N, C), not {tuple(values.shape)}"
        )
    if not values.isfinite().all():
        raise InputError("the features hold values that are not finite; look at the nets")
    return values


def _check_images(x: Tensor, target: Tensor) -> None:
    if len(x) != len(target) or len(x) < 2:
        raise InputError(
            f"x and the target must be of the same two images or more, not {len(x)} and"
            f" {len(target)}"
        )


def _classes(classes: ArrayLike | None, images: int) -> Tensor:
    """Give the images' classes, int64 (N,); all are one where there are none."""
    if classes is None:
        return torch.zeros(images, dtype=torch.int64)
    labels = torch.as_tensor(classes).cpu()
    if labels.shape != (images,) or labels.is_floating_point():
        raise InputError(
            f"classes must be an integer for each of {images} images, not {tuple(labels.shape)}"
        )
    return labels.long()


def _open(net: nn.Module | str | Path, layer: str, image_size: int, arch: str | None) -> CutNet:
    """Cut a net at a layer and prove the cut, on noise."""
    place = Layer(layer, image_size=image_size)
    if isinstance(net, nn.Module):
        model = copy.deepcopy(net).cpu().float().eval().requires_grad_(False)
        # By type: the caller's net has no file.
        cut = CutNet(model, [NetSource(type(net).__name__, place.node(model))], {})
    else:
        cut = open_net(net, arch, place)
    cut.prove_fast(stand_in_pixels(image_size))
    return cut


def _words(interval: Interval) -> str:
    if interval.value is None:
        return f"not defined: {interval.reason}"
    ends = (
        ""
        if interval.low is None or interval.high is None
        else f"  [{interval.low:.4f}, {interval.high:.4f}]"
    )
    return f"{interval.value:.4f}{ends}"
