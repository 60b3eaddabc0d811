"""How the golden files of DCM and HSAKD are read:
weights made from their names, and comparisons with the numbers.
"""

import zlib
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent
CHUNK = 1 << 14  # elements that stay in the processor's cache


def read(name):
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def mixed(key, count):
    """u in [0, 1) for elements 0, 1, … of the tensor `key`:
    a 64-bit mix of the key's CRC-32 and the element.
    """
    begin = (zlib.crc32(key.encode()) << 32) + 1
    u = np.empty(count)
    for start in range(0, count, CHUNK):
        q = np.arange(min(CHUNK, count - start), dtype=np.uint64)
        q += np.uint64((begin + start) % 2**64)
        q *= np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            q ^= q >> np.uint64(shift)
            q *= np.uint64(factor)
        q ^= q >> np.uint64(31)
        u[start : start + len(q)] = q >> np.uint64(11)
    u /= 2**53
    return u


def filled(key, shape):
    """The tensor that the fill rule gives a key of the authors."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    value = mixed(key, int(np.prod(shape)))
    if len(shape) > 1:
        value *= 2
        value -= 1
        value *= np.sqrt(4.5 / np.prod(shape[1:]))
    elif key.endswith(("running_mean", "bias")):
        value = 0.4 * value - 0.2
    else:
        value += 0.5
    return torch.from_numpy(value.astype(np.float32).reshape(shape))


def shapes_of(golden, arch):
    """The authors' state dict of an architecture: shapes by key."""
    texts = zip(golden[f"{arch}/keys"], golden[f"{arch}/shapes"])
    return {
        str(key): tuple(int(size) for size in text.split("x")) if text else ()
        for key, text in texts
    }


def part(golden, prefix):
    """A stored state dict; its float16 values are exact."""
    state = {
        key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)
    }
    return {key: torch.from_numpy(np.asarray(value, np.float32)) for key, value in state.items()}


def tensor(golden, key):
    return torch.from_numpy(golden[key])


def assert_logits(actual, expected):
    """max|Δ| ≤ 1e-4 · max|logit|."""
    assert actual.shape == expected.shape
    assert np.abs(actual.detach().numpy() - expected).max() <= 1e-4 * np.abs(expected).max()


def norms(tensors):
    return np.array([-1.0 if value is None else value.double().norm().item() for value in tensors])


def assert_gradient_norms(parameters, expected):
    """1e-3 relative, of norms above 1e-6 of the largest; −1 is no gradient."""
    actual = norms([parameter.grad for parameter in parameters])
    np.testing.assert_array_equal(actual == -1, expected == -1)
    compared = expected > 1e-6 * expected.max()
    np.testing.assert_allclose(actual[compared], expected[compared], rtol=1e-3)
