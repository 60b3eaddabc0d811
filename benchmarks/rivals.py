"""Other ways to ask which pairs of classes B tells apart and A does not.

Each gives a score of every pair of classes; the highest is named first. Dictionaries (k-means, NMF,
a sparse autoencoder) are learned from each net's features, averaged over positions; a pair's score
is how far B's dictionary holds its classes apart beyond A's.

RDX (Kondapaneni, Mac Aodha, Perona, NeurIPS 2025), as its paper describes it: the distance of two
images in a net is the rank of one among the other's neighbours; the difference of both nets'
distances counts most where one is small; spectral clustering of its exponential gives groups of
images that lie together in A and apart in B. A pair's score is the share of its pairs of images that
lie in one group. The scale of the difference and of the exponential are ours.
"""

import itertools
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from consistency.knowledge import lost_bits
from consistency.similarity import ImageRows, cka

Array = NDArray[Any]
Pairs = Sequence[tuple[int, int]]

WORDS = 20  # of k-means and NMF
OVERCOMPLETE, SPARSITY, SAE_STEPS = 4, 0.03, 300  # units a channel, weight of |code|, of Adam
RDX_IMAGES, RDX_GROUPS = 500, 10
RDX_SHARPNESS, RDX_LOCALITY = 5.0, 0.1  # of the exponential, of the difference


def pairs_of(classes: int) -> list[tuple[int, int]]:
    """Give all pairs of classes, the smaller number first."""
    return list(itertools.combinations(range(classes), 2))


class Described:
    """A net's features in the words of dictionaries, learned when they are first asked for.

    Args:
        fitted: features that dictionaries are learned from, averaged over positions, (N, C), at
            least 0.
        held_out: those that are described, (N', C).
    """

    def __init__(self, fitted: Tensor, held_out: Tensor) -> None:
        # One scale for the net, so that channels keep theirs
        self.fitted, self.held_out = (
            of.double() / fitted.double().std() for of in (fitted, held_out)
        )

    @cached_property
    def groups(self) -> Array:
        """The group of k-means of each image, one-hot, (N', words)."""
        model = KMeans(WORDS, n_init=3, random_state=0).fit(self.fitted.numpy())
        return np.eye(WORDS)[model.predict(self.held_out.numpy())]

    @cached_property
    def parts(self) -> Array:
        """The activation of each part of NMF, (N', words)."""
        model = NMF(WORDS, init="nndsvda", max_iter=200, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(self.fitted.numpy())
            return model.transform(self.held_out.numpy())

    @cached_property
    def codes(self) -> Array:
        """The code of a sparse autoencoder, (N', 4 C)."""
        generator = torch.Generator().manual_seed(0)
        x, channels = self.fitted.float(), self.fitted.shape[1]
        units = OVERCOMPLETE * channels
        encoder = torch.randn(channels, units, generator=generator) / channels**0.5
        decoder = encoder.T.clone()
        bias, mean = torch.zeros(units), x.mean(0)
        weights = [of.requires_grad_() for of in (encoder, decoder, bias)]
        optimizer = torch.optim.Adam(weights, lr=3e-3)
        with torch.enable_grad():
            for _ in range(SAE_STEPS):
                code = torch.relu((x - mean) @ encoder + bias)
                # Unit words, so that no code shrinks by a longer word
                words = decoder / decoder.norm(dim=1, keepdim=True).clamp(min=1e-6)
                error = (code @ words + mean - x).square().sum(1).mean()
                optimizer.zero_grad()
                (error + SPARSITY * code.sum(1).mean()).backward()
                optimizer.step()
        with torch.no_grad():
            return torch.relu((self.held_out.float() - mean) @ encoder + bias).numpy()


def held_apart(words: Array, labels: Tensor, pairs: Pairs) -> Array:
    """Give how well the best word tells the classes of each pair: |2 AUC − 1|."""
    scores = []
    for c, d in pairs:
        first, second = (words[(labels == of).numpy()] for of in (c, d))
        count = len(first)
        # Mann and Whitney: the sum of the first class's ranks less its least is U; U / (n m) is the
        # area.
        ranks = rankdata(np.concatenate([first, second]), axis=0)[:count].sum(0)
        areas = (ranks - count * (count + 1) / 2) / (count * len(second))
        scores.append(np.abs(2 * areas - 1).max())
    return np.array(scores)


def grouped_apart(groups: Array, labels: Tensor, pairs: Pairs) -> Array:
    """Give the total variation between how the classes of each pair fall into groups."""
    shares = {int(of): groups[(labels == of).numpy()].mean(0) for of in labels.unique()}
    return np.array([np.abs(shares[c] - shares[d]).sum() / 2 for c, d in pairs])


def confusions(logits: Tensor, labels: Tensor, pairs: Pairs) -> Array:
    """Give the share of the images of both classes of a pair that are answered by the other one."""
    answers, shares = logits.argmax(1), []
    for c, d in pairs:
        crossed = [
            (answers[labels == of] == other).double().mean() for of, other in ((c, d), (d, c))
        ]
        shares.append(float(sum(crossed)))
    return np.array(shares)


def bits_between(logits: Tensor, sent_logits: Tensor, labels: Tensor, pairs: Pairs) -> Array:
    """Give the bits of B's choice between two classes that are lost, on images of these."""
    lost = []
    for c, d in pairs:
        members = (labels == c) | (labels == d)
        both = (of[members][:, [c, d]] for of in (logits, sent_logits))
        lost.append(lost_bits(*both).mean().item())
    return np.array(lost)


def fisher(rows: Tensor, labels: Tensor, pairs: Pairs) -> Array:
    """Give log ‖μ_c − μ_d‖² / (tr Σ_c + tr Σ_d) of every pair."""
    members = {int(of): rows[labels == of] for of in labels.unique()}
    means = {of: rows.mean(0) for of, rows in members.items()}
    spreads = {of: rows.var(0).sum() for of, rows in members.items()}
    ratios = [(means[c] - means[d]).square().sum() / (spreads[c] + spreads[d]) for c, d in pairs]
    return torch.stack(ratios).log().numpy()


def distance_by_cka(first: Tensor, second: Tensor, labels: Tensor, pairs: Pairs) -> Array:
    """Give 1 − CKA of two nets' features of the images of a pair."""
    distances = []
    for c, d in pairs:
        members = (labels == c) | (labels == d)
        distances.append(1 - cka(ImageRows(first[members]), ImageRows(second[members])))
    return np.array(distances)


def probes(rows: Sequence[Tensor], labels: Sequence[Tensor], pairs: Pairs) -> Array:
    """Give the accuracy of a ridge classifier between the classes of each pair.

    Args:
        rows: features of the fitted and of the held-out images.
        labels: of both.
        pairs: of classes.
    """
    scale = rows[0].std(0).clamp(min=1e-6)
    fitted, held_out = ((of - rows[0].mean(0)) / scale for of in rows)
    accuracies = []
    for c, d in pairs:
        members = [(of == c) | (of == d) for of in labels]
        x, y = fitted[members[0]], (labels[0][members[0]] == c).double() * 2 - 1
        # In the dual form, since there are fewer images of two classes than columns
        gram = x @ x.mT + 0.1 * len(x) * torch.eye(len(x), dtype=x.dtype)
        weights = x.mT @ torch.linalg.solve(gram, y - y.mean())
        scores = held_out[members[1]] @ weights + y.mean()
        accuracies.append(((scores > 0) == (labels[1][members[1]] == c)).double().mean().item())
    return np.array(accuracies)


def grouped_by_rdx(first: Tensor, second: Tensor, labels: Tensor, pairs: Pairs) -> Array:
    """Give RDX's share of the pairs of images of two classes that lie together in A and apart in B.

    Args:
        first: A's features, (N, C).
        second: B's.
        labels: the images' classes.
        pairs: of these.
    """
    chosen = torch.linspace(0, len(labels) - 1, min(RDX_IMAGES, len(labels))).long()
    ranks = []
    for rows in (first[chosen], second[chosen]):
        distances = torch.cdist(rows.double(), rows.double())
        # The rank of each value in its row is the order of the order.
        ranks.append(distances.argsort(1).argsort(1).double() / len(chosen))
    nearest = torch.minimum(*ranks).clamp(min=1 / len(chosen))
    # Below 0 where A holds two images nearer to each other than B does
    difference = torch.tanh(RDX_LOCALITY * (ranks[0] - ranks[1]) / nearest)
    affinity = torch.exp(-RDX_SHARPNESS * difference)
    symmetric = ((affinity + affinity.T) / 2).numpy()
    model = SpectralClustering(RDX_GROUPS, affinity="precomputed", random_state=0)
    groups = np.eye(RDX_GROUPS)[model.fit_predict(symmetric)]
    # The group of the least affinity is what both nets see alike
    sizes = groups.sum(0)
    # gᵀ S g / |g|²: the mean affinity inside each group
    inside = np.einsum("ig,ij,jg->g", groups, symmetric, groups) / np.maximum(sizes, 1) ** 2
    groups[:, np.argmin(inside)] = 0
    members = {int(of): (labels[chosen] == of).numpy() for of in labels.unique()}
    shares = {of: groups[mask].mean(0) for of, mask in members.items()}
    # The chance that an image of c and one of d lie in one group
    return np.array([shares[c] @ shares[d] for c, d in pairs])
