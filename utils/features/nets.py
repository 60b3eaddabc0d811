"""What stored features show of their two networks: how often they are right, and what is doubtful."""

from typing import Any

from utils.features.cache import FeatureCache
from utils.features.old_folder import OldFeatureFolder
from utils.later import scipy

CHANCE_LEVEL = 0.01  # of a one-sided test: an accuracy that chance reaches more often than this is none


def accuracies(features: FeatureCache | OldFeatureFolder, split: str) -> list[str]:
    """Say how often both networks had the label among their first answers."""
    known: Any = features.facts.get("top_k", [])
    lines = []
    for name, hits in (("A", features.hits_a), ("B", features.hits_b)):
        tops = [f"top-{k} {100 * share:.2f} %" for k, share in zip(known, hits.double().mean(0).tolist())]
        lines.append(f"net {name}: {', '.join(tops)} of {len(features):,} {split} images")
    return lines


def doubts(features: FeatureCache | OldFeatureFolder) -> list[str]:
    """Say what is doubtful about a pair: one file for both networks, or one that has learned nothing.

    Where images have one label and the hits among the first answers are known, a network's accuracy is held against
    always giving the most frequent class (binomial test).

    Returns:
        Sentences; none where there is nothing to say.
    """
    sentences, source = [], features.provenance
    if source.a.sha256 is not None and source.a.sha256 == source.b.sha256:
        same = "at one layer: they are equal" if source.a.layer == source.b.layer else "at two layers"
        sentences.append(f"nets A and B are one file, {source.a.path}, {same}")
    known: Any = features.facts.get("top_k", [])
    if 1 not in known or features.targets.ndim > 1:
        return sentences
    column, count = known.index(1), len(features)
    chance = features.targets.unique(return_counts=True)[1].max().item() / count
    for name, hits in (("A", features.hits_a), ("B", features.hits_b)) if chance < 1 else ():
        right = int(hits[:, column].sum())
        if scipy.stats.binomtest(right, count, chance, alternative="greater").pvalue > CHANCE_LEVEL:
            sentences.append(
                f"net {name} is right for {100 * right / count:.1f} % of these images, and the most frequent class "
                f"alone makes {100 * chance:.1f} %: it seems untrained, or trained on other classes"
            )
    return sentences
