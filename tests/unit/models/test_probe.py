from typing import Any

import pytest
import torch

from models import build
from models.probe import linear_probe
from tests.mistakes import refused


@pytest.mark.parametrize(
    ("arch", "last"), [("mobilenetV2", "classifier"), ("resnet8", "fc"), ("resnet18", "fc")]
)
def test_only_the_new_layer_learns(arch, last):
    model: Any = build(arch, 5).train()
    layer = linear_probe(model, 7)
    assert model.get_submodule(last) is layer
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(
        [value for value in model.parameters() if value.requires_grad], lr=0.1
    )
    model.train()
    logits = model(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 7)
    logits[:, 0].sum().backward()
    optimizer.step()
    changed = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed == {f"{last}.weight", f"{last}.bias"}


def test_a_network_without_a_linear_layer_at_the_end_is_refused():
    with refused("classifier.1", "SqueezeNet"):
        linear_probe(build("squeezenet1_1", 5), 7)
