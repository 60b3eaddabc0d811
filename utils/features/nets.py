"""What features show of their two networks: how often they are right, and what is doubtful."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from utils.features.cache import FeatureCache
from utils.features.old_folder import OldFeatureFolder
from utils.later import scipy
from utils.progress import Progress
from utils.provenance import Provenance
from utils.runtime import Runtime

# Of a one-sided test: an accuracy that chance reaches more often than this is none
CHANCE_LEVEL = 0.01
FEW = 3  # images that rounding may turn; of many images one of five hundred
DEVIATIONS = 4  # of a share that is measured on some of the images


class Answers(NamedTuple):
    """How often a network's first answer is the label.

    Attributes:
        right: images of which it is.
        asked: images that the network was asked about.
    """

    right: int
    asked: int

    @property
    def percent(self) -> float:
        """The share of right answers."""
        return 100 * self.right / self.asked


def accuracies(features: FeatureCache | OldFeatureFolder, split: str) -> list[str]:
    """Say how often both networks had the label among their first answers."""
    known: Any = features.facts.get("top_k", [])
    lines = []
    for name, hits in (("A", features.hits_a), ("B", features.hits_b)):
        tops = [
            f"top-{k} {100 * share:.2f} %"
            for k, share in zip(known, hits.double().mean(0).tolist())
        ]
        lines.append(f"net {name}: {', '.join(tops)} of {len(features):,} {split} images")
    return lines


def doubts(features: FeatureCache | OldFeatureFolder) -> list[str]:
    """Say what is doubtful about a pair of which features are stored; see `pair_doubts`."""
    known: Any = features.facts.get("top_k", [])
    if 1 not in known:
        return pair_doubts(features.provenance, {}, None)
    column, count = known.index(1), len(features)
    hits = {"A": features.hits_a, "B": features.hits_b}
    answers = {name: Answers(int(of_net[:, column].sum()), count) for name, of_net in hits.items()}
    return pair_doubts(features.provenance, answers, features.targets)


def pair_doubts(
    provenance: Provenance, answers: Mapping[str, Answers], targets: Tensor | None
) -> list[str]:
    """Say what is doubtful about a pair of networks.

    - One file stands for both.
    - A network is right no more often than whoever always gives the most frequent class (`at_chance`).
    - A network is right more or less often than its checkpoint says of the same images: then it sees them
      otherwise than in training.

    Args:
        provenance: what the networks are.
        answers: of "A" and "B", where they are known.
        targets: of all images, int64 (N,); of several labels an image (N, C), which are not judged.

    Returns:
        Sentences; none where there is nothing to say.
    """
    sentences, a, b = list[str](), provenance.a, provenance.b
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
    """Say it where a network is right no more often than
    always giving the most frequent class would be.

    A one-sided exact binomial test: P(X ≥ right) of X ~ Binomial(asked, share of that class).

    Args:
        name: of the network, for the sentence.
        answers: how often it is right.
        targets: of all images, int64 (N,).

    Returns:
        One sentence, or none.
    """
    chance = targets.unique(return_counts=True)[1].max().item() / len(targets)
    excess = answers.right / answers.asked - chance
    # Hoeffding's bound spares the import of the exact test wherever a network has learned
    # something.
    if chance == 1 or (excess > 0 and math.exp(-2 * answers.asked * excess**2) < CHANCE_LEVEL):
        return []
    # P(X ≥ k) is the regularised incomplete beta function I_p(k, n − k + 1). `scipy.stats` knows it
    # as `binomtest`, and takes longer to import than the test takes.
    right, asked = answers.right, answers.asked
    p_value = scipy.special.betainc(right, asked - right + 1, chance) if right else 1.0
    if p_value <= CHANCE_LEVEL:
        return []
    return [
        f"{name} is right for {answers.percent:.1f} % of these images, and the most frequent class "
        f"alone makes {100 * chance:.1f} %: it seems untrained, or trained on other classes"
    ]


def differs_from_record(answers: Answers, percent: float | None, images: int) -> bool:
    """Say whether a network is right otherwise than a record says, by more than a few images.

    Args:
        answers: what was measured.
        percent: what the record says of all images; None: nothing.
        images: how many these are. Where fewer were asked, their share varies by itself.
    """
    if percent is None:
        return False
    share, allowed = percent / 100, max(FEW, answers.asked / 500)
    if answers.asked < images:
        allowed += DEVIATIONS * math.sqrt(answers.asked * share * (1 - share))
    return abs(answers.right - share * answers.asked) > allowed


@torch.no_grad()
def ask(nets: Sequence[nn.Module], loader: DataLoader[Any], runtime: Runtime) -> dict[str, Answers]:
    """Count how often nets A and B are right.

    Args:
        nets: pixels → logits, on any device.
        loader: of images with one label each.
        runtime: device, processes, precision.
    """
    nets = [net.to(runtime.device).eval() for net in nets]
    counts = torch.zeros(len(nets) + 1, dtype=torch.int64, device=runtime.device)
    for batch in Progress(loader, "accuracies", quiet=not runtime.is_main):
        pixels, targets, _ = runtime.to_device(batch)
        with runtime.autocast():
            answers = [net(pixels).argmax(1) for net in nets]
        counts += torch.stack(
            [*((answer == targets).sum() for answer in answers), targets.new_tensor(len(targets))]
        )
    *right, asked = runtime.sum(counts).tolist()
    return {name: Answers(count, asked) for name, count in zip("AB", right)}
