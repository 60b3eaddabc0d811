import pickle

import numpy as np
import pytest
import torch

from utils.errors import InputError
from utils.measures import image_moments
from utils.measures.bootstrap import bootstrap, weighted
from utils.measures.image_moments import ImageMoments
from utils.measures.moments import ComponentMoments


def pieces(images=24, offset=0.0, dtype=torch.float32):
    """Components (3, N, 5, 4, 3) and a residual that depend on each other, their channels of different means."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(4, images, 5, 4, 3, generator=generator, dtype=torch.float64)
    raw = raw + torch.randn(4, images, 5, 1, 1, generator=generator, dtype=torch.float64)  # images differ
    mixed = torch.einsum("ij,jnchw->inchw", torch.randn(4, 4, generator=generator, dtype=torch.float64), raw)
    mixed += offset * torch.randn(4, 1, 5, 1, 1, generator=generator, dtype=torch.float64)
    return mixed[:3].to(dtype), mixed[3].to(dtype)


def accumulated(components, residual, indices=None, size=7):
    moments = ImageMoments()
    indices = torch.arange(len(residual)) if indices is None else indices
    for part, rest, numbers in zip(components.split(size, dim=1), residual.split(size), indices.split(size)):
        moments.update(part, rest, numbers)
    return moments


def assert_numbers(found, components, residual, mean):
    """The numbers must be those of one pass over these images, repeated ones included."""
    expected = ComponentMoments()
    expected.update(components, residual)
    report = expected.report(mean)
    for name, value in report["var"].items():
        np.testing.assert_allclose(found[f"var_{name}"], value, rtol=1e-6)
        if name not in ("target", "residual"):
            np.testing.assert_allclose(found[f"share_{name}"], value / report["var"]["target"], rtol=1e-6)
    np.testing.assert_allclose(found["instability"], report["instability"], rtol=1e-6)
    assert len(found) == 2 * len(report["var"]) - 1


@pytest.mark.parametrize("mean", ["channel", "global"])
@pytest.mark.parametrize("offset", [1.0, 1e3])
def test_the_numbers_of_every_resample_are_those_of_its_images(mean, offset):
    components, residual = pieces(offset=offset)
    moments = accumulated(components, residual)
    weights = np.random.default_rng(0).multinomial(24, np.full(24, 1 / 24), size=5).astype(float)
    found = moments.statistic(mean)(*(weighted(part, weights) for part in moments.arrays()))
    for row, drawn in enumerate(weights):
        taken = torch.arange(24).repeat_interleave(torch.tensor(drawn).long())
        assert_numbers({name: part[row] for name, part in found.items()}, components[:, taken], residual[taken], mean)


def test_images_are_ordered_by_their_numbers_whoever_saw_them():
    components, residual = pieces()
    one = accumulated(components, residual)
    shares = [torch.arange(rank, 24, 2) for rank in range(2)]  # as two processes read them
    merged = ImageMoments()
    for share in (shares[1], shares[0]):
        part = accumulated(components[:, share], residual[share], share)
        merged.merge(pickle.loads(pickle.dumps(part)))
    merged.merge(ImageMoments())  # a process that saw nothing
    assert merged.images == one.images == 24
    for mean in ("channel", "global"):
        numbers = [of.statistic(mean)(*(4 * part[3:9].sum(0) for part in of.arrays())) for of in (one, merged)]
        for name, value in numbers[0].items():
            assert numbers[1][name] == pytest.approx(value, rel=1e-6)


def test_intervals_hold_their_values():
    moments = accumulated(*pieces())
    found = bootstrap(moments.statistic(), moments.arrays(), resamples=200)
    assert list(found)[:2] == ["var_target", "var_order0"] and list(found)[-1] == "instability"
    for interval in found.values():
        assert interval.low < interval.value < interval.high


def test_the_memory_is_what_the_docstring_says():
    moments = accumulated(*pieces())
    comoments, sums = moments.arrays()
    assert (comoments.shape, comoments.dtype, sums.shape, sums.dtype) == ((24, 4, 4), "f8", (24, 4, 5), "f4")
    assert comoments.nbytes + sums.nbytes == 24 * 4 * (4 * 5 + 8 * 4)


def test_batches_are_taken_in_slices_of_bounded_size(monkeypatch):
    components, residual = pieces(dtype=torch.float16)
    whole = accumulated(components, residual, size=24).arrays()
    monkeypatch.setattr(image_moments, "CHUNK_BYTES", 8 * 4 * residual[0].numel() * 24)
    at_once = accumulated(components, residual, size=24)
    monkeypatch.setattr(image_moments, "CHUNK_BYTES", 8 * 4 * residual[0].numel() * 2)
    sliced = accumulated(components, residual, size=24)
    assert (len(at_once._sums), len(sliced._sums)) == (1, 12)
    numbers = [of.statistic()(*(part.sum(0) for part in of.arrays())) for of in (at_once, sliced)]
    assert numbers[0]["instability"] == pytest.approx(numbers[1]["instability"], rel=1e-6)
    np.testing.assert_array_equal(whole[0], at_once.arrays()[0])


def test_a_constant_target_has_no_instability():
    zeros = torch.zeros(2, 3, 4, 2, 2)
    moments = accumulated(zeros, zeros[0])
    found = bootstrap(moments.statistic(), moments.arrays(), resamples=50)
    assert found["var_target"].value == found["var_target"].high == 0
    assert found["instability"].value is None
    assert found["instability"].reason == "50 of 50 resamples have no such number"


def test_what_does_not_belong_together_is_refused():
    components, residual = pieces()
    moments = accumulated(components, residual)
    with pytest.raises(InputError, match=r"\(3, 5, 12\) vectors, channels and positions came after \(4, 5, 12\)"):
        moments.update(components[1:], residual, torch.arange(24))
    with pytest.raises(ValueError, match="'pixel'"):
        moments.statistic("pixel")(*(part.sum(0) for part in moments.arrays()))
