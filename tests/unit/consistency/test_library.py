"""What `import consistency` offers: its examples, what it leaves alone, and what it refuses."""

import doctest
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import consistency
import models
from consistency import library
from tests.mistakes import refused
from utils.errors import InputError

ROOT = Path(consistency.__file__).parents[1]


def net():
    """A net with a layer of maps, one of vectors, and a BatchNorm whose statistics would move."""
    layers = [
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 36, 6),
        nn.Linear(6, 5),
    ]
    return nn.Sequential(*layers)


def python(program, folder, **environment):
    words = [sys.executable, "-c", program]
    paths = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(
        words, cwd=folder, env=paths, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_examples_run():
    result = doctest.testmod(library)
    assert result.attempted >= 20 and not result.failed


def test_every_function_has_an_example():
    for name in filter(str.islower, consistency.__all__):
        assert f"consistency.{name}(" in (getattr(consistency, name).__doc__ or "")


def test_no_module_hides_a_function():
    """`consistency.fit` is a function:
    a module of that name would take its place once it is imported.
    """
    modules = {path.stem for path in Path(consistency.__file__).parent.glob("*.py")}
    assert not modules & set(consistency.__all__)
    assert set(consistency.__all__) <= set(dir(consistency))


def test_pytorch_is_loaded_when_it_is_needed(tmp_path):
    done = python("import consistency, sys; print('torch' in sys.modules)", tmp_path)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "False", "")


@pytest.mark.parametrize("name", ["models", "utils"])
def test_a_folder_that_hides_ours_is_named(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    done = python("import consistency", tmp_path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ") and str(tmp_path / name) in last and "rename" in last


def test_a_folder_without_init_hides_nothing(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "net.py").touch()
    assert python("import consistency; consistency.fit", tmp_path).returncode == 0


# --- features


@pytest.mark.parametrize("layer, shape", [("2", (4, 6, 6)), ("4", (6,))])
def test_features_are_those_of_the_layer(layer, shape):
    network, images = net(), torch.randn(7, 3, 8, 8)
    labelled = [(part, torch.zeros(len(part))) for part in images.split(3)]
    features = consistency.features(network, layer, labelled)
    assert (
        features.shape == (7, *shape)
        and features.dtype == torch.float32
        and not features.requires_grad
    )
    with torch.no_grad():
        expected = network.eval()[: int(layer) + 1](images)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


def test_a_net_stays_as_it_was():
    network = net().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    consistency.features(network, "2", torch.randn(4, 3, 8, 8).split(2))
    assert network.training and all(part.requires_grad for part in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_checkpoint_gives_what_its_net_gives(fitted):
    path = fitted / "model_checkpoints/checkpoint_digits_resnet18_sd0.pth.tar"
    images = torch.randn(3, 3, 32, 32)
    of_file = consistency.features(path, "layer2", [images])
    of_net = consistency.features(models.load_classifier(path), "layer2", [images])
    torch.testing.assert_close(of_file, of_net)
    assert of_file.shape == (3, 128, 4, 4)


@pytest.mark.parametrize("images", [[], torch.randn(2, 3, 8, 8), [torch.randn(2, 3, 8, 6)]])
def test_what_are_no_batches_is_refused(images):
    with refused("`images`"):
        consistency.features(net(), "2", images)


# --- fit and variances


def planted(images=120, channels=4, size=3, seed=0):
    """x, and a target that a linear layer and a ReLU behind it make of x."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, channels, size, size, generator=generator)
    return x, torch.einsum("nchw,dc->ndhw", x, torch.randn(5, channels, generator=generator))


def test_a_fit_leaves_the_random_numbers_as_they_were():
    x, target = planted(40)
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    expected = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    consistency.fit(x, target, epochs=1)
    assert (torch.rand(1), np.random.rand(), random.random()) == expected


def test_a_fit_repeats_itself_also_where_no_gradients_are_wanted():
    x, target = planted(40)
    first = consistency.fit(x, target, layers=2, epochs=2, alpha=[0.1])
    with torch.no_grad():
        second = consistency.fit(x.numpy(), target.numpy(), layers=2, epochs=2, alpha=[0.1])
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


def test_shares_and_instability_of_a_planted_map():
    x, target = planted()
    trans_net = consistency.fit(x[:60], target[:60], layers=2, epochs=1)
    found = consistency.variances(trans_net, x[60:], target[60:], resamples=50)
    assert found.images == 60 and list(found.shares) == ["order0", "order1", "output"]
    assert found.instability.value < 0.02
    assert found.instability.low <= found.instability.value <= found.instability.high
    assert len(str(found).splitlines()) == 4
    mixed = consistency.variances(trans_net, x[60:], target[60:].roll(1, 0), resamples=0)
    assert mixed.instability.value > 1.5 and mixed.instability.low is None


@pytest.mark.parametrize(
    "shapes", [((40, 6), (40, 4)), ((40, 5, 6), (40, 5, 4)), ((40, 3, 4, 4), (40, 2, 2, 2))]
)
def test_vectors_tokens_and_maps_of_other_sizes(shapes):
    x, target = (torch.randn(shape) for shape in shapes)
    trans_net = consistency.fit(x, target, layers=2, epochs=1)
    assert 0 < consistency.variances(trans_net, x, target, resamples=0).instability.value < 1.1
    found = consistency.calibrate(x, target, permutations=19, resamples=20)
    assert found.shared.value < 0.5 and found.forth.null.p_value >= 0.05
    scores = consistency.similarities(x, target, permutations=0)
    assert all(score.p is None for score in scores.values())


# --- calibrate, similarities, knowledge


def test_a_shared_feature_is_above_its_class_and_its_class_mean_is_not():
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(200) % 4
    means = 3 * torch.randn(4, 5, generator=generator)[classes]
    of_image = torch.randn(200, 5, generator=generator)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator))[0]
    same = consistency.calibrate(
        means + of_image, (means + of_image) @ turn, classes, permutations=39, resamples=50
    )
    assert same.forth.null.p_value == 1 / 40 and same.shared.value > 0.9
    noise = torch.randn(200, 5, generator=generator)
    of_class = consistency.calibrate(
        means + of_image, means + noise, classes, permutations=39, resamples=50
    )
    assert of_class.shared.value < 0.2 and 0.02 < of_class.floor < 0.6
    assert "shared" in str(of_class) and "p = " in str(of_class)


def test_images_that_are_held_out_can_be_chosen():
    x, target = planted(60)
    held_out = torch.arange(60) >= 40
    target[40:] = torch.randn(20, *target.shape[1:], generator=torch.Generator().manual_seed(1))
    scores = consistency.similarities(x, target, held_out=held_out, permutations=19)
    assert scores["ridge R² x → x*"].value < 0.1
    found = consistency.calibrate(x, target, held_out=held_out, permutations=19, resamples=20)
    assert found.forth.intervals["instability"].value > 0.9


def test_what_arrives_of_b():
    target, classes = torch.randn(150, 4, 3, 3), torch.arange(150) % 3
    tail = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(36, 5)).train()
    kept = consistency.kept_knowledge(
        tail, target, target, classes=classes, permutations=19, resamples=20
    )
    assert tail.training and kept["agreement"] == 1 and len(kept.lost_by_class) == 3
    with torch.no_grad():
        none = consistency.kept_knowledge(
            tail, target, torch.zeros_like(target), permutations=19, resamples=20
        )
    assert none["K_c"] < 0.05 * kept["K"]


def test_a_reconstruction_comes_as_maps_and_goes_as_the_tail_takes_it():
    target, tail = torch.randn(20, 6, 4), nn.Sequential(nn.Flatten(), nn.Linear(24, 5))
    maps = target.transpose(1, 2)[..., None]
    assert (
        consistency.kept_knowledge(tail, target, maps, permutations=19, resamples=0)["agreement"]
        == 1
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda x: consistency.fit(x, x[:-1]),
        lambda x: consistency.fit(x, x[..., 0, 0]),
        lambda x: consistency.fit(x[:, 0, 0, 0], x),
        lambda x: consistency.fit(x / 0, x),
        lambda x: consistency.variances(consistency.fit(x, x, layers=1, epochs=0), x[:, :2], x),
        lambda x: consistency.calibrate(x, x, torch.zeros(3, dtype=torch.int64)),
        lambda x: consistency.calibrate(x, x, torch.rand(len(x))),
        lambda x: consistency.calibrate(x, x, torch.arange(len(x))),
        lambda x: consistency.calibrate(x, x, held_out=torch.ones(len(x), dtype=torch.bool)),
        lambda x: consistency.similarities(x, x[1:]),
        lambda x: consistency.kept_knowledge(nn.Flatten(), x, x[:, 1:]),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(call):
    with pytest.raises(InputError) as refusal:
        call(torch.randn(12, 3, 2, 2))
    assert len(str(refusal.value).splitlines()) == 1
