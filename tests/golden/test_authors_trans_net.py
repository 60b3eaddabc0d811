"""Our Trans-Net computes the numbers of the authors' Trans-Net, to 1e-5."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kstest

from models import TransNet, load_trans_net
from utils.training.losses import order_penalty

pytestmark = pytest.mark.golden
FOLDER = Path(__file__).parent
FILES = ["transnet_instance", "transnet_instance_alpha8", "transnet_batch"]
INSTANCE_FILES = FILES[:2]


@pytest.fixture
def golden(request):
    with np.load(FOLDER / f"{request.param}.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def authors_state(golden, prefix):
    return {
        name.removeprefix(prefix): value
        for name, value in golden.items()
        if name.startswith(prefix)
    }


def load(golden, prefix, tmp_path):
    """Through the checkpoint in the authors' file format, the way a user loads it."""
    path = tmp_path / "authors.pth.tar"
    torch.save(
        {"state_dict": authors_state(golden, prefix)}, path, _use_new_zipfile_serialization=False
    )
    return load_trans_net(path)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def loss_of(trans_net, golden):
    alpha = golden["alphas"].flip(0)  # theirs starts at the highest order
    mse = F.mse_loss(trans_net(golden["x"]), golden["target"])
    return mse, mse + order_penalty(trans_net.p, alpha)


def in_bounds(weight):
    """A convolution's weights as shares of the bound 1/√fan_in, (n,)."""
    return (weight.detach() * weight[0].numel() ** 0.5).flatten()


@pytest.mark.parametrize("golden", FILES, indirect=True)
def test_the_initial_weights_are_drawn_from_the_same_distribution(golden):
    """Uniform within ±1/√fan_in, the framework's default,
    in their files and in a fresh Trans-Net of the same shape.
    """
    theirs = {
        name: value for name, value in golden.items() if name.startswith("init/linearLayers_conv")
    }
    torch.manual_seed(0)
    ours = TransNet(golden["x"].shape[1], golden["target"].shape[1], len(theirs))
    for weights in (list(theirs.values()), list(ours.linear.parameters())):
        shares = torch.cat([in_bounds(weight) for weight in weights])
        assert all(0.98 < in_bounds(weight).abs().max() <= 1 for weight in weights)
        assert float(shares.std()) == pytest.approx(3**-0.5, rel=0.05)
        assert kstest(shares.double().numpy(), "uniform", (-1, 2)).pvalue > 0.01
    assert {weight.shape for weight in theirs.values()} == {
        weight.shape for weight in ours.linear.parameters()
    }


@pytest.mark.parametrize("golden", FILES, indirect=True)
def test_forward_loss_and_gradients(golden, tmp_path):
    trans_net = load(golden, "init/", tmp_path).train()
    close(trans_net(golden["x"]), golden["train_forward"])
    mse, loss = loss_of(load(golden, "init/", tmp_path).train(), golden)
    close(mse, golden["mse"])
    close(loss, golden["loss"])

    loss_of(trans_net, golden)[1].backward()
    layers = trans_net.order + 1
    for k in range(layers):
        close(
            trans_net.linear[k].weight.grad,
            golden[f"grad/linearLayers_conv.{layers - 1 - k}.weight"],
        )
    close(trans_net.logit_p.grad, golden["grad/nonLinearLayers_p_pre"].flip(0))


@pytest.mark.parametrize("golden", FILES, indirect=True)
def test_three_adam_steps(golden, tmp_path):
    trans_net = load(golden, "init/", tmp_path).train()
    optimizer = torch.optim.Adam(trans_net.parameters(), lr=1e-2, weight_decay=1e-4)
    losses = []
    for _ in range(3):
        loss = loss_of(trans_net, golden)[1]
        losses.append(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    close(torch.stack(losses), golden["losses"])

    expected = load(golden, "after3/", tmp_path).state_dict()
    actual = trans_net.state_dict()
    assert actual.keys() == expected.keys()
    for name in actual:
        close(actual[name], expected[name])


@pytest.mark.parametrize("golden", FILES, indirect=True)
@torch.no_grad()
def test_evaluation(golden, tmp_path):
    close(load(golden, "after3/", tmp_path)(golden["x"]), golden["eval_forward"])


@pytest.mark.parametrize("golden", INSTANCE_FILES, indirect=True)
@torch.no_grad()
def test_components(golden, tmp_path):
    trans_net = load(golden, "after3/", tmp_path)
    output, components = trans_net.decompose(golden["x"])
    close(components, golden["components_order0_1_2"])
    close(output, golden["decompose_sum"])
    close(output, trans_net(golden["x"]))
