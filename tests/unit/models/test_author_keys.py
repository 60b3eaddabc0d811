import pytest
import torch

from models.author_keys import (
    fold_masks,
    is_authors_trans_net,
    strip_module,
    trans_net_from_authors,
)
from models.trans_net import TransNet
from tests.mistakes import refused


def authors_trans_net(layers=3, channels=4, out_channels=4, kernel_size=3, batch=False, prefix=""):
    """A state dict under the authors' names whose entries tell where they belong."""
    state = {"nonLinearLayers_p_pre": torch.arange(layers - 1).float()}
    for i in range(layers):
        shape = (out_channels if i == layers - 1 else channels, channels, kernel_size, kernel_size)
        state[f"linearLayers_conv.{i}.weight"] = torch.full(shape, float(i))
    if batch:
        state["nonLinearLayers_norm"] = torch.arange(layers).float()[:, None].repeat(1, channels)
        state["running_times"] = torch.arange(layers) + 10
    return {prefix + key: value for key, value in state.items()}


def test_module_pieces_go_wherever_they_stand():
    keys = [
        "features.module.0.weight",
        "module.conv1.weight",
        "classifier.0.bias",
        "module.a.module.b",
    ]
    stripped = strip_module({key: torch.tensor(number) for number, key in enumerate(keys)})
    assert stripped == {"features.0.weight": 0, "conv1.weight": 1, "classifier.0.bias": 2, "a.b": 3}


def test_masks_are_folded_into_their_weights():
    weight, mask = torch.randn(3, 2), torch.tensor([[1, 0], [0, 1], [1, 1]], dtype=torch.uint8)
    state = {"fc.weight": weight, "fc.bias": torch.ones(3), "fc.mask": mask, "conv.weight": weight}
    folded = fold_masks(state)
    assert set(folded) == {"fc.weight", "fc.bias", "conv.weight"}
    assert torch.equal(folded["fc.weight"], torch.where(mask.bool(), weight, torch.zeros(())))
    assert folded["fc.weight"].dtype == torch.float32
    assert torch.equal(folded["conv.weight"], weight)
    assert torch.equal(state["fc.weight"], weight) and not torch.equal(folded["fc.weight"], weight)


@pytest.mark.parametrize(
    "state",
    [
        {"fc.mask": torch.ones(2)},
        {"fc.weight": torch.ones(3), "fc.mask": torch.ones(2)},
        {"mask": torch.ones(2)},
    ],
)
def test_a_mask_without_its_weight_stays_what_it_is(state):
    folded = fold_masks(state)
    assert list(folded) == list(state) and all(folded[key] is state[key] for key in state)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("layers", [1, 3, 4])
def test_the_authors_layers_are_counted_from_the_other_end(layers, prefix):
    state = authors_trans_net(layers, channels=4, out_channels=6, kernel_size=1, prefix=prefix)
    assert is_authors_trans_net(state)
    config, weights = trans_net_from_authors(state, "file")
    assert config == {
        "in_channels": 4,
        "out_channels": 6,
        "layers": layers,
        "kernel_size": 1,
        "norm": "instance",
    }
    highest = layers - 1
    assert weights["logit_p"].tolist() == [highest - order for order in range(1, layers)]
    for order in range(layers):
        assert weights[f"linear.{order}.weight"].unique().tolist() == [highest - order]
    trans_net = TransNet(**config)
    trans_net.load_state_dict(weights)
    assert torch.equal(trans_net.p, weights["logit_p"].sigmoid())


def test_rows_of_the_divisors_go_to_their_orders_and_the_last_to_the_input():
    config, weights = trans_net_from_authors(authors_trans_net(layers=4, batch=True), "file")
    assert config["norm"] == "batch"
    rows = {"scale.2": 0, "scale.1": 1, "scale.0": 2, "input_scale": 3}  # scale[k-1] is Σ(k), K = 3
    for name, row in rows.items():
        assert weights[f"{name}.running_std"].tolist() == [row] * 4
        assert weights[f"{name}.batches"].item() == 10 + row
    TransNet(**config).load_state_dict(weights)


def test_what_is_no_trans_net_of_the_authors_is_refused():
    assert not is_authors_trans_net({"fc.weight": torch.ones(2)})
    with refused("net.pth", "nonLinearLayers_p_pre"):
        trans_net_from_authors({"fc.weight": torch.ones(2)}, "net.pth")


def test_missing_and_unknown_entries_are_named():
    state = authors_trans_net()
    del state["linearLayers_conv.1.weight"]
    state["extra.weight"] = torch.ones(1)
    with refused("file", "3", "extra.weight", "linearLayers_conv.1.weight"):
        trans_net_from_authors(state, "file")
