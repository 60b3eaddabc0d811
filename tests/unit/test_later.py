import subprocess
import sys

import pytest

from utils.later import Later


def test_a_module_is_loaded_by_the_first_use_of_a_name():
    sys.modules.pop("colorsys", None)
    later = Later("colorsys")
    assert "colorsys" not in sys.modules
    assert later.rgb_to_hsv(1, 0, 0) == (0, 1, 1)
    assert "colorsys" in sys.modules


def test_a_module_inside_is_loaded_too():
    sys.modules.pop("xml.sax.handler", None)
    assert Later("xml").sax.handler.ContentHandler


@pytest.mark.parametrize("name", ["json", "colorsys"])  # a package, a single file
def test_a_missing_name_is_missing_as_of_any_object(name):
    with pytest.raises(AttributeError) as caught:
        _ = Later(name).nothing
    assert name in str(caught.value) and "nothing" in str(caught.value)
    assert not hasattr(Later(name), "__wrapped__")


@pytest.fixture
def fresh_process():
    """Run Python code in a process of its own, where nothing is loaded yet; give its words."""

    def run(*lines: str) -> list[str]:
        code = "\n".join(["import sys, torch", "from utils.later import defer_compiler", *lines])
        words = [sys.executable, "-c", code]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()

    return run


COMPILED = "print(any(name.startswith('torch._dynamo.eval') for name in sys.modules))"


def test_training_and_torchvision_load_no_compiler(fresh_process):
    lines = (
        "defer_compiler()",
        "import torchvision",
        "weight = torch.nn.Parameter(torch.ones(2))",
        "optimizer = torch.optim.SGD([weight], 0.5)",
        "weight.sum().backward(); optimizer.step(); optimizer.zero_grad()",
        "print(*weight.tolist())",
        COMPILED,
    )
    assert fresh_process(*lines) == ["0.5", "0.5", "False"]


def test_what_compiles_finds_the_compiler(fresh_process):
    lines = (
        "defer_compiler()",
        "import torch._dynamo, torch._dynamo.utils",
        "from torch._dynamo.utils import counters",
        "twice = torch.compile(lambda x: 2 * x, backend='eager')",
        "print(twice(torch.ones(1)).item(), torch._dynamo.is_compiling())",
        COMPILED,
        "defer_compiler()",  # too late: nothing is put in its place
        COMPILED,
    )
    assert fresh_process(*lines) == ["2.0", "False", "True", "True"]
