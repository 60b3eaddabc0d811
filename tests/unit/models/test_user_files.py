"""Factories in files: `path/to/file.py:factory`, in repositories of every usual shape."""

import sys

import pytest
import torch

import models
import utils
from models.classifiers import build
from tests.mistakes import refused

NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)

    def forward(self, images):
        return self.fc(images.mean((2, 3)))
"""


def write(root, **files):
    """Write Python files by their dotted names."""
    for name, text in files.items():
        path = root.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def logits(path, factory="net"):
    return build(f"{path}:{factory}", 4)(torch.zeros(2, 3, 8, 8)).shape


@pytest.fixture(autouse=True)
def table():
    """The table of modules and the path are as they were before."""
    before, path = (
        {name for name in sys.modules if name.partition(".")[0] in ("models", "utils", "blocks")},
        [*sys.path],
    )
    yield
    after = {
        name for name in sys.modules if name.partition(".")[0] in ("models", "utils", "blocks")
    }
    assert before == after and sys.path == path
    assert sys.modules["models"] is models and sys.modules["utils"] is utils


def test_a_file_finds_its_siblings(tmp_path):
    write(tmp_path, blocks=NET, nets="from blocks import Net as net\n")
    assert logits(tmp_path / "nets.py") == (2, 4)


def test_a_folder_called_models_is_the_users_in_his_code(tmp_path):
    resnet = """
from models.blocks import Net as Same
from utils.tools import Net

assert Net is Same


def net(num_classes):
    from utils.tools import Net as Late

    assert Late is Net
    return Net(num_classes)
"""
    write(
        tmp_path,
        models__blocks=NET,
        utils__tools="from models.blocks import Net\n",
        models__resnet=resnet,
    )
    assert logits(tmp_path / "models/resnet.py") == (2, 4)


def test_a_package_above_the_files_folder_is_the_users(tmp_path):
    write(tmp_path, nets__net="from utils import Net as net\n", utils__tools=NET)
    (tmp_path / "utils/__init__.py").write_text("from .tools import Net\n")
    assert logits(tmp_path / "nets/net.py") == (2, 4)


@pytest.mark.parametrize("package", [True, False], ids=["with __init__.py", "without"])
def test_relative_imports(tmp_path, package):
    write(tmp_path, models__blocks=NET, models__resnet="from .blocks import Net as net\n")
    if package:
        (tmp_path / "models/__init__.py").write_text("from models.resnet import net as first\n")
    assert logits(tmp_path / "models/resnet.py") == (2, 4)


def test_two_repositories_with_the_same_names_do_not_mix(tmp_path):
    for number in (1, 2):
        text = (
            "from models.blocks import width, Net\ndef net(num_classes):\n    assert width =="
            f" {number}\n"
        )
        write(
            tmp_path / str(number),
            models__blocks=f"{NET}\nwidth = {number}\n",
            models__net=f"{text}    return Net(num_classes)\n",
        )
    for number in (1, 2, 1):
        assert logits(tmp_path / str(number) / "models/net.py") == (2, 4)


def test_a_file_is_run_once(tmp_path):
    write(tmp_path, nets=NET)
    first, second = (build(f"{tmp_path}/nets.py:Net", 4) for _ in range(2))
    assert type(first) is type(second)


def test_a_file_may_use_this_project(tmp_path):
    write(
        tmp_path,
        nets=(
            "from models.small.auxiliary import build_bare\ndef net(n): return"
            " build_bare('resnet8', n)"
        ),
    )
    assert logits(tmp_path / "nets.py") == (2, 4)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("import no_such_library\n", ("line 1", "ModuleNotFoundError", "'no_such_library'")),
        ("def net(:\n", ("line 1",)),
        ("def net(num_classes):\n    return 1 / 0\n", ("line 2", "ZeroDivisionError")),
        ("def other(): ...\n", ("'net'", "other")),
        ("def net(block, layers): ...\n", ("block", "layers", "num_classes")),
    ],
)
def test_what_is_wrong_with_the_code_is_one_line(tmp_path, text, facts):
    write(tmp_path, nets=text)
    with refused("nets.py", *facts):
        build(f"{tmp_path}/nets.py:net", 4)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with refused(f"{tmp_path}/nets.py"):
        build(f"{tmp_path}/nets.py:net", 4)
