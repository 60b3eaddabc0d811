"""Nets of 24,170 parameters that learn MNIST, into some of which a lack is planted.

| kind | what it was taught |
|---|---|
| plain | ten digits |
| merged | that two digits are one |
| hidden | the same up to a cut, and behind it a new tail that was taught all ten |
| unseen | nine digits: it never saw the tenth |
| random | ten digits, of which one had labels at random |
| shortcut | ten digits, of which one had a white border, which the held-out images do not have |
| twenty | twenty classes: the digits, and the same mirrored |
| mirrored | ten digits, half of them mirrored: it need not know which |

A net is kept as soon as it is trained, so that an interrupted benchmark goes on.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils import checkpoint
from utils.data.images import load_folder

DIGITS, SIZE = 10, 28
BATCH = 32
BORDER = 2  # pixels
CUTS = {"middle": (8, 3), "late": (11, 1)}  # layers before the cut, and g's kernel
MERGED = [(3, 5), (4, 9), (0, 1), (6, 7)]


class Images(NamedTuple):
    """Grey images (N, 1, 28, 28), standardised, and their classes (N,)."""

    pixels: Tensor
    digits: Tensor


def read_images(folder: str | Path) -> tuple[Images, Images]:
    """Read the images to fit to and those to judge on."""
    both = []
    for data in load_folder(folder, SIZE):
        pixels, digits, _ = data.__getitems__(range(len(data)))
        grey = pixels[:, :1].float()
        both.append(Images((grey - grey.mean()) / grey.std(), digits))
    return both[0], both[1]


def make_net(classes: int = DIGITS) -> nn.Sequential:
    """Make a net: three convolutions, each behind a normalisation, and a layer."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        # The middle cut: 32 × 7 × 7
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
        # The late cut: 64 × 7 × 7
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes)),
    )


def train(net: nn.Module, inputs: Tensor, digits: Tensor, epochs: int, seed: int) -> None:
    """Train by Adam with a falling learning rate."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    # −(−a // b) rounds up.
    steps = epochs * -(-len(inputs) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(epochs):
        for some in torch.randperm(len(inputs), generator=generator).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(net(inputs[some]), digits[some]).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def outputs(net: nn.Module, inputs: Tensor) -> Tensor:
    """Let a net, or a half of one, see images."""
    return torch.cat([net(some) for some in inputs.split(500)])


def with_merged(images: Images, pair: tuple[int, int]) -> Images:
    """Call the second digit of a pair the first."""
    digits = torch.where(images.digits == pair[1], pair[0], images.digits)
    return Images(images.pixels, digits)


def without(images: Images, digit: int) -> Images:
    """Leave a digit out."""
    others = images.digits != digit
    return Images(images.pixels[others], images.digits[others])


def with_random(images: Images, digit: int, seed: int) -> Images:
    """Give the images of a digit labels at random."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, DIGITS, images.digits.shape, generator=generator)
    return Images(images.pixels, torch.where(images.digits == digit, labels, images.digits))


def with_border(images: Images, digit: int) -> Images:
    """Draw a white border around the images of a digit."""
    framed = images.pixels.clone()
    white = images.pixels.max()
    framed[..., :BORDER, :] = framed[..., -BORDER:, :] = white
    framed[..., :, :BORDER] = framed[..., :, -BORDER:] = white
    is_digit = (images.digits == digit)[:, None, None, None]
    return Images(torch.where(is_digit, framed, images.pixels), images.digits)


def with_mirrored(images: Images, *, as_classes: bool) -> Images:
    """Add the images' mirror images, as classes 10 to 19 or as the same digits."""
    mirrored = images.digits + DIGITS * as_classes
    return Images(
        torch.cat([images.pixels, images.pixels.flip(-1)]), torch.cat([images.digits, mirrored])
    )


class PlantedNets:
    """The nets of a benchmark, which are trained when they are first asked for.

    Args:
        images: that nets learn from.
        folder: where nets stay.
        epochs: of each training.
    """

    def __init__(self, images: Images, folder: Path, epochs: int) -> None:
        self.images, self.folder, self.epochs = images, folder, epochs

    def plain(self, number: int) -> nn.Sequential:
        """Give a net without a lack."""
        return self._trained(f"plain-{number}", lambda: self.images, number)

    def twenty(self, number: int) -> nn.Sequential:
        """Give a net that tells digits from their mirror images."""
        images = lambda: with_mirrored(self.images, as_classes=True)  # noqa: E731
        return self._trained(f"new-{number}", images, 2000 + number, 2 * DIGITS)

    def mirrored(self, number: int) -> nn.Sequential:
        """Give a net that was taught that mirror images are the same digits."""
        images = lambda: with_mirrored(self.images, as_classes=False)  # noqa: E731
        return self._trained(f"mirrored-{number}", images, 2100 + number)

    def merged(self, pair: tuple[int, int], number: int) -> nn.Sequential:
        """Give a net to which a pair of digits is one."""
        name = f"merged-{pair[0]}-{pair[1]}-{number}"
        seed = _seed(number) + MERGED.index(pair)
        return self._trained(name, lambda: with_merged(self.images, pair), seed)

    def hidden(self, pair: tuple[int, int], number: int, cut: str) -> nn.Sequential:
        """Give the merged net with a new tail behind a cut."""
        layers, seed = CUTS[cut][0], _seed(number) + MERGED.index(pair)
        head = self.merged(pair, number)[:layers]
        path = self.folder / f"hidden-{cut}-{pair[0]}-{pair[1]}-{number}.pt"
        torch.manual_seed(seed)
        tail = make_net()[layers:]
        if path.is_file():
            tail.load_state_dict(checkpoint.load(path))
        else:
            features = outputs(head, self.images.pixels)
            train(tail, features, self.images.digits, self.epochs, seed)
            checkpoint.save(path, tail.state_dict())
        return nn.Sequential(*head, *tail).eval()

    def lacking(self, kind: str, digit: int, number: int) -> nn.Sequential:
        """Give a net that lacks one digit: "unseen", "random" or "shortcut"."""
        seed = _seed(number) + {"unseen": 10, "random": 11, "shortcut": 12}[kind]
        lacks: dict[str, Callable[[], Images]] = {
            "unseen": lambda: without(self.images, digit),
            "random": lambda: with_random(self.images, digit, seed),
            "shortcut": lambda: with_border(self.images, digit),
        }
        return self._trained(f"{kind}-{digit}-{number}", lacks[kind], seed)

    def _trained(
        self, name: str, images: Callable[[], Images], seed: int, classes: int = DIGITS
    ) -> nn.Sequential:
        """Give a net of a seed, which alone says how it begins and in which order it sees images."""
        path = self.folder / f"{name}.pt"
        torch.manual_seed(seed)
        net = make_net(classes)
        if path.is_file():
            net.load_state_dict(checkpoint.load(path))
        else:
            train(net, *images(), self.epochs, seed)
            checkpoint.save(path, net.state_dict())
        return net.eval()


def _seed(number: int) -> int:
    """Give the first of the seeds of the nets that lack something and send to one plain net."""
    return 1000 + 20 * number
