"""What the tests of the models share: an empty cache of weights,
an untrained ResNet-18, a small net to prune.
"""

import urllib.error

import pytest
import torch

from tests.unit.models.cheap import untrained
from tests.unit.models.pruned import SmallNet


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    """torchvision's weights as a person without a network has them: an empty cache."""

    def no_network(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    return tmp_path / "hub/checkpoints"


@pytest.fixture(scope="module")
def resnet18():
    """A ResNet-18 with cheap random weights; only to be read."""
    return untrained("resnet18").eval()


@pytest.fixture
def net():
    """The small network of pruned.py, always the same."""
    torch.manual_seed(0)
    return SmallNet()
