import hashlib
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from tests.mistakes import refused
from utils.data.batches import AUGMENTATIONS, Augmentation, Preprocessing, augment
from utils.data.loaders import make_loader
from utils.normalisation import NORMALISATIONS
from utils.pixels import normalise

NUMPY_MODES: dict[str, Any] = {"reflect": "reflect", "zero": "constant"}
PLACES = list(itertools.product(range(9), range(9), (0, 1)))  # top, left, flipped


def pictures(count, size=8, seed=0):
    """Random uint8 (n, 3, size, size)."""
    return torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    )


def crop(image, top, first_column, flipped, *, padding, mode):
    """What one image becomes, by NumPy's padding."""
    padded = np.pad(
        image.numpy(), ((0, 0), (padding, padding), (padding, padding)), NUMPY_MODES[mode]
    )
    size = image.shape[-1]
    cropped = padded[:, top : top + size, first_column : first_column + size]
    return torch.from_numpy(cropped[..., ::-1].copy() if flipped else cropped)


def split_mix(seed, epoch, index):
    """Number `index` of the SplitMix64 stream of (seed, epoch), in Python's whole numbers."""
    stream = int.from_bytes(
        hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=8).digest(), "little"
    )
    bits = (stream + index * 0x9E3779B97F4A7C15) % 2**64
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
    return bits ^ bits >> 31


def place(seed, epoch, index, padding=4):
    """Top, left and flip of an image."""
    bits = split_mix(seed, epoch, index)
    return (
        bits % 2**20 % (2 * padding + 1),
        (bits >> 20) % 2**20 % (2 * padding + 1),
        (bits >> 40) % 2,
    )


def places(count, *, epoch=0, seed=0, first=0):
    """The places of many images,
    read off what becomes of a picture whose pixels are their own coordinates.
    """
    steps = torch.arange(1, 17, dtype=torch.uint8)
    map_of_places = torch.stack(
        [steps[:, None].expand(16, 16), steps.expand(16, 16), steps.expand(16, 16)]
    )
    indices = torch.arange(first, first + count)
    cropped = augment(
        map_of_places.expand(count, -1, -1, -1),
        indices,
        epoch=epoch,
        seed=seed,
        padding=4,
        mode="zero",
    )
    rows, columns = cropped[:, 0, 8, 8].long(), cropped[:, 1, 8, 7:9].long()
    flipped = columns[:, 0] > columns[:, 1]
    first_column = torch.where(flipped, columns[:, 1] - 4, columns[:, 1] - 5)
    return torch.stack([rows - 5, first_column, flipped.long()], dim=1).numpy()


# --- normalisation


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_normalised_pixels_have_the_mean_and_deviation_that_are_named(name):
    mean, std = NORMALISATIONS[name]
    images = pictures(3)
    expected = (images.double() / 255 - torch.tensor(mean).double().view(3, 1, 1)) / torch.tensor(
        std
    ).view(3, 1, 1)
    result = normalise(images, mean, std)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_constants_are_the_recipes():
    assert NORMALISATIONS["cifar"] == ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
    means, stds = (torch.tensor(values) * 255 for values in NORMALISATIONS["dcm"])
    torch.testing.assert_close(means, torch.tensor([125.3, 123.0, 113.9]))
    torch.testing.assert_close(stds, torch.tensor([63.0, 62.1, 66.7]))


def test_normalise_leaves_its_input_and_works_in_training_after_inference_mode():
    from utils.pixels import _mean_and_std

    _mean_and_std.cache_clear()
    images = torch.full((1, 3, 2, 2), 128, dtype=torch.uint8)
    with torch.inference_mode():
        normalise(images, *NORMALISATIONS["imagenet"])
    assert not any(
        constant.is_inference()
        for constant in _mean_and_std(images.device, *NORMALISATIONS["imagenet"])
    )
    weight = torch.ones(3, 1, 1, requires_grad=True)
    (normalise(images, *NORMALISATIONS["imagenet"]) * weight).sum().backward()
    assert weight.grad is not None
    assert images.unique().tolist() == [128]


# --- augmentation


@pytest.mark.parametrize("mode", ["reflect", "zero"])
@pytest.mark.parametrize(("size", "padding"), [(8, 4), (32, 4), (5, 4), (7, 1), (6, 0)])
def test_every_image_is_padded_cropped_and_flipped_as_its_number_says(mode, size, padding):
    images, indices = pictures(40, size), torch.arange(100, 140)
    before = images.clone()
    result = augment(images, indices, epoch=3, seed=11, padding=padding, mode=mode)
    assert result.dtype == torch.uint8 and result.shape == images.shape
    assert torch.equal(images, before)
    for image, index, cropped in zip(images, indices.tolist(), result):
        assert torch.equal(
            cropped, crop(image, *place(11, 3, index, padding), padding=padding, mode=mode)
        )


def test_the_draws_never_change():
    """A run that goes on under a later version crops as before:
    the numbers of the first version.
    """
    first = [[3, 0, 0], [3, 4, 0], [6, 7, 1], [2, 5, 1], [8, 0, 0], [0, 1, 0]]
    assert places(6, epoch=7, seed=42).tolist() == first


def test_an_image_is_cropped_alike_in_any_batch():
    images = pictures(50)
    whole = augment(images, torch.arange(50), epoch=2, seed=5, padding=4, mode="reflect")
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    for size in (1, 7, 50):
        for piece in order.split(size):
            torch.rand(3)  # nothing that others draw matters
            assert torch.equal(
                augment(images[piece], piece, epoch=2, seed=5, padding=4, mode="reflect"),
                whole[piece],
            )


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_crop_as_one(world_size):
    """A loader's shares: every image is cropped as when one process sees them all,
    the padding's repeats too.
    """

    class Pictures(torch.utils.data.Dataset):
        def __len__(self):
            return 20

        def __getitems__(self, indices):
            index = torch.tensor(indices)
            return pictures(20)[index], index

    whole = augment(pictures(20), torch.arange(20), epoch=4, seed=1, padding=4, mode="zero")
    seen = set()
    for rank in range(world_size):
        loader = make_loader(Pictures(), 3, shuffle=True, rank=rank, world_size=world_size)
        loader.batch_sampler.set_epoch(4)  # type: ignore[union-attr]
        for images, indices in loader:
            assert torch.equal(
                augment(images, indices, epoch=4, seed=1, padding=4, mode="zero"), whole[indices]
            )
            seen |= set(indices.tolist())
    assert seen == set(range(20))


def count_places(result):
    return np.unique(result[:, 0] * 18 + result[:, 1] * 2 + result[:, 2], return_counts=True)


def test_all_places_are_alike_often_and_half_of_the_images_are_flipped():
    result = places(162 * 200, seed=3, epoch=1)
    values, counts = count_places(result)
    assert values.tolist() == list(range(len(PLACES)))
    assert chisquare(counts).pvalue > 1e-3
    assert abs(result[:, 2].mean() - 0.5) < 0.01


@pytest.mark.parametrize(
    "other",
    [{"epoch": 2}, {"seed": 4}, {"first": 1}, {"epoch": 3, "seed": 1}, {"first": 50_000}],
    ids=["next epoch", "next seed", "next image", "seed and epoch exchanged", "other images"],
)
def test_draws_are_independent(other):
    """Every pair of places in two draws is alike often."""
    count = 81 * 400
    one, two = places(count, seed=3, epoch=1), places(count, **{"seed": 3, "epoch": 1, **other})
    for column in (0, 1):
        pairs = np.bincount(one[:, column] * 9 + two[:, column], minlength=81)
        assert chisquare(pairs).pvalue > 1e-3
    assert chisquare(np.bincount(one[:, 2] * 2 + two[:, 2], minlength=4)).pvalue > 1e-3


@pytest.mark.parametrize("seed", [0, -1, 2**40, 10**30])
def test_any_whole_number_is_a_seed(seed):
    values, _ = count_places(places(5000, seed=seed))
    assert len(values) == len(PLACES)


def test_images_that_are_too_small_or_modes_that_are_none_are_refused():
    with refused("4", "--image_size"):
        augment(pictures(1, 4), torch.tensor([0]), epoch=0, seed=0, padding=4, mode="reflect")
    augment(pictures(1, 4), torch.tensor([0]), epoch=0, seed=0, padding=4, mode="zero")
    with refused("wrap", kind=ValueError):
        augment(pictures(1), torch.tensor([0]), epoch=0, seed=0, padding=4, mode="wrap")


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["reflect", "zero"])
def test_a_gpu_crops_as_the_cpu(mode):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    images, indices = pictures(500, 32), torch.arange(2**40, 2**40 + 500)
    expected = augment(images, indices, epoch=9, seed=10**18, padding=4, mode=mode)
    result = augment(images.cuda(), indices, epoch=9, seed=10**18, padding=4, mode=mode)
    assert result.device.type == "cuda" and torch.equal(result.cpu(), expected)


# --- both


def test_training_images_are_augmented_in_their_epoch_and_others_are_not():
    images, indices = pictures(10), torch.arange(10)
    mean, std = NORMALISATIONS["dcm"]
    preprocess = Preprocessing(mean, std, Augmentation(4, "reflect"), seed=8)
    cropped = augment(images, indices, epoch=5, seed=8, padding=4, mode="reflect")
    assert torch.equal(preprocess(images, indices, 5), normalise(cropped, mean, std))
    assert torch.equal(preprocess(images), normalise(images, mean, std))
    assert torch.equal(preprocess(images, indices), preprocess(images))
    assert not torch.equal(preprocess(images, indices, 0), preprocess(images, indices, 1))
    plain = Preprocessing(mean, std)
    assert torch.equal(plain(images, indices, 5), normalise(images, mean, std))


def test_the_table_of_augmentations_is_the_recipes():
    assert {
        "reflect4": Augmentation(4, "reflect"),
        "zero4": Augmentation(4, "zero"),
    } == AUGMENTATIONS
