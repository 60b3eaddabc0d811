"""The accuracies of both networks on the features' images, and doubts that follow from them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from utils.features.cache import FeatureCache
from utils.features.old_folder import OldFeatureFolder
from utils.progress import Progress
from utils.provenance import Provenance
from utils.runtime import Runtime

# The level of a one-sided test: an accuracy that chance reaches more often counts as chance.
CHANCE_LEVEL = 0.01
FEW = 3  # images that rounding may turn right or wrong; of many images, one of 500
DEVIATIONS = 4  # standard deviations allowed to a share that is measured on some of the images


class Answers(NamedTuple):
    """A count of a network's right answers.

    Attributes:
        right: images whose label is the network's first answer.
        asked: images that the network was asked about.
    """

    right: int
    asked: int

    @property
    def percent(self) -> float:
        """The share of right answers, in percent."""
        return 100 * self.right / self.asked


def accuracies(features: FeatureCache | OldFeatureFolder, split: str) -> list[str]:
    """Write one line for each network: its top-k accuracies on the stored images."""
    top_k: Any = features.facts.get("top_k", [])
    lines = []
    for name, hits in (("A", features.hits_a), ("B", features.hits_b)):
        tops = [
            f"top-{k} {100 * share:.2f} %"
            for k, share in zip(top_k, hits.double().mean(0).tolist())
        ]
        lines.append(f"net {name}: {', '.join(tops)} of {len(features):,} {split} images")
    return lines


def doubts(features: FeatureCache | OldFeatureFolder) -> list[str]:
    """Give the doubts about the pair of some stored features; see `pair_doubts`."""
    top_k: Any = features.facts.get("top_k", [])
    if 1 not in top_k:
        return pair_doubts(features.provenance, {}, None)
    column, count = top_k.index(1), len(features)
    hits = {"A": features.hits_a, "B": features.hits_b}
    answers = {name: Answers(int(of_net[:, column].sum()), count) for name, of_net in hits.items()}
    return pair_doubts(features.provenance, answers, features.targets)


def pair_doubts(
    provenance: Provenance, answers: Mapping[str, Answers], targets: Tensor | None
) -> list[str]:
    """Give the doubts about a pair of networks.

    - Both networks are one file.
    - A network's accuracy is at chance: that of the most frequent class (`at_chance`).
    - A network's accuracy differs from its checkpoint's on the same images. Then the images reach
      it otherwise than in training.

    Args:
        provenance: the records of the networks.
        answers: of "A" and "B", if they were counted.
        targets: of all images, int64 (N,). Several labels an image, (N, C), are not judged.

    Returns:
        Sentences; none without a doubt.
    """
    sentences, a, b = list[str](), provenance.a, provenance.b
    # By content: a copy under another name is the same net.
    if a.sha256 is not None and a.sha256 == b.sha256:
        same = "at one layer: they are equal" if a.layer == b.layer else "at two layers"
        sentences.append(f"nets A and B are one file, {a.path}, {same}")
    if targets is None or targets.ndim > 1:
        return sentences
    for name, source in (("A", a), ("B", b)):
        if name not in answers:
            continue
        sentences += at_chance(f"net {name}", answers[name], targets)
        if differs_from_record(answers[name], source.top1_percent, len(targets)):
            sentences.append(
                f"net {name} is right for {answers[name].percent:.1f} % of these images, its"
                f" checkpoint says {source.top1_percent:.1f} %: it seems to see them otherwise than"
                " in training (--normalisation, --image_size)"
            )
    return sentences


def at_chance(name: str, answers: Answers, targets: Tensor) -> list[str]:
    """Doubt a network whose accuracy is that of always giving the most frequent class.

    A one-sided exact binomial test: P(X ≥ right), where X ~ Binomial(asked, share of that class).

    Args:
        name: of the network, for the sentence.
        answers: of the network.
        targets: of all images, int64 (N,).

    Returns:
        One sentence, or none.
    """
    # The most frequent class's share of the images
    chance = targets.unique(return_counts=True)[1].max().item() / len(targets)
    excess = answers.right / answers.asked - chance
    # Hoeffding: P(X/n ≥ chance + excess) ≤ exp(−2 n excess²) mostly decides without the sum
    if chance == 1 or (excess > 0 and math.exp(-2 * answers.asked * excess**2) < CHANCE_LEVEL):
        return []
    # SciPy's `binomtest` gives the same, and its import takes a quarter of a second
    share = torch.tensor(chance, dtype=torch.float64)
    counts = torch.arange(answers.right, answers.asked + 1, dtype=torch.float64)
    p_value = torch.distributions.Binomial(answers.asked, share).log_prob(counts).exp().sum()
    if p_value <= CHANCE_LEVEL:
        return []
    return [
        f"{name} is right for {answers.percent:.1f} % of these images, and the most frequent class "
        f"alone makes {100 * chance:.1f} %: it seems untrained, or trained on other classes"
    ]


def differs_from_record(answers: Answers, percent: float | None, images: int) -> bool:
    """Whether a measured accuracy differs from a recorded one by more than a few images.

    Args:
        answers: the measurement.
        percent: the record, over all images; None: there is none.
        images: the number of all images. A share of fewer images varies by chance.
    """
    if percent is None:
        return False
    share, allowed = percent / 100, max(FEW, answers.asked / 500)
    if answers.asked < images:
        # The standard deviation of a binomial count, n p (1 − p) under the root
        allowed += DEVIATIONS * math.sqrt(answers.asked * share * (1 - share))
    return abs(answers.right - share * answers.asked) > allowed


@torch.no_grad()
def ask(nets: Sequence[nn.Module], loader: DataLoader[Any], runtime: Runtime) -> dict[str, Answers]:
    """Count the right answers of nets A and B.

    Args:
        nets: pixels → logits, on any device.
        loader: of images with one label each.
        runtime: device, processes, precision.

    Returns:
        The counts of "A" and "B", over all processes.
    """
    nets = [net.to(runtime.device).eval() for net in nets]
    # The last entry counts the images that were asked about.
    counts = torch.zeros(len(nets) + 1, dtype=torch.int64, device=runtime.device)
    for batch in Progress(loader, "accuracies", quiet=not runtime.is_main):
        pixels, targets, _ = runtime.to_device(batch)
        with runtime.autocast():
            answers = [net(pixels).argmax(1) for net in nets]
        right_answers = [(answer == targets).sum() for answer in answers]
        counts += torch.stack([*right_answers, torch.full_like(right_answers[0], len(targets))])
    *right, asked = runtime.sum(counts).tolist()
    return {name: Answers(count, asked) for name, count in zip("AB", right)}
