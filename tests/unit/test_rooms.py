"""The plan of the house: who may import whom, and what must not happen where."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = {
    "BornAgain",
    "Calibrate",
    "Compare",
    "ConvOutput",
    "DCM",
    "HSAKD",
    "PrepareData",
    "Pruning",
    "Report",
    "Training",
    "Training_TransNet",
    "Variance",
    "transClassifier",
}
SCRIPTS = sorted(ROOT.glob("*.py"))
MODELS = sorted((ROOT / "models").rglob("*.py"))
UTILS = sorted((ROOT / "utils").rglob("*.py"))
CONSISTENCY = sorted((ROOT / "consistency").rglob("*.py"))
DISTILLATION = sorted((ROOT / "distillation").rglob("*.py"))
SCIENCE = CONSISTENCY + DISTILLATION
FROM_UTILS_IN_MODELS = {
    "utils.checkpoint",
    "utils.devices",
    "utils.errors",
    "utils.files",
    "utils.later",
    "utils.normalisation",
    "utils.pixels",
    "utils.presence",
    "utils.provenance",
    "utils.remarks",
}
# What a wing may import of the other wings; the ground alone is open to all.
WINGS = {
    "data": set(),
    "prepare": {"data"},
    "features": {"data"},
    "training": {"data"},
    "report": set(),
}
EFFECTS = {
    "print",
    "open",
    "input",
    "exit",
    "parse_args",
    "parse_known_args",
    "ArgumentParser",
    "Parser",
    "device",
    "cuda",
    "set_device",
    "is_available",
    "manual_seed",
    "seed",
    "mkdir",
    "unlink",
    "rmtree",
    "write_text",
    "write_bytes",
    "read_text",
    "read_bytes",
    "read_json",
    "getLogger",
    "basicConfig",
    "set_num_threads",
    "simplefilter",
    "filterwarnings",
    "SummaryWriter",
    "system",
    "run",
    "Popen",
}

HEAVY = [
    "torchvision",
    "matplotlib",
    "tensorboard",
    "scipy.linalg",
    "scipy.stats",
    "sklearn",
    "torch._dynamo",
    "torch.onnx",
    "jinja2",
    "timm",
    "safetensors",
]


def files(paths):
    return pytest.mark.parametrize(
        "path", paths, ids=[path.relative_to(ROOT).as_posix() for path in paths]
    )


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere, as dotted names;
    `from utils import checkpoint` is utils.checkpoint.
    """
    found = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the plan"
            of_room = node.module in ("utils", "models", "consistency", "distillation")
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names}
                if of_room
                else {str(node.module)}
            )
    return found


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when a module is imported:
    not the bodies of functions, nor the block for __main__.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "__main__" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Lambda):
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            for part in (*child.decorator_list, *child.args.defaults, *child.args.kw_defaults):
                if part is not None:
                    yield part
                    yield from at_import(part)
            continue
        yield child
        yield from at_import(child)


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def test_the_steps_are_all_there():
    assert {path.stem for path in SCRIPTS} == STEPS


def room(path: Path) -> str:
    """Name the wing of utils that a file is in; "" is the ground."""
    inside = path.relative_to(ROOT / "utils").parts
    return inside[0] if len(inside) > 1 else ""


@files(UTILS)
def test_utils_knows_neither_models_nor_scripts(path):
    assert not {
        name
        for name in imports(path)
        if name.split(".")[0] in {"consistency", "distillation", "models", "experiments", *STEPS}
    }


@files(UTILS)
def test_wings_stand_on_the_ground_and_beside_each_other(path):
    wings = {name.split(".")[1] for name in imports(path) if name.startswith("utils.")} & set(WINGS)
    if path.name == "opening.py":  # the one room that joins options and wings
        return
    allowed = {room(path)} | WINGS[room(path)] if room(path) else set()
    assert wings <= allowed


def test_every_wing_is_in_the_plan():
    assert {
        path.name for path in (ROOT / "utils").iterdir() if (path / "__init__.py").exists()
    } == set(WINGS)


@files(MODELS)
def test_models_takes_little_from_utils(path):
    found = {name for name in imports(path) if name.split(".")[0] == "utils"}
    assert found <= FROM_UTILS_IN_MODELS
    assert not {
        name
        for name in imports(path)
        if name.split(".")[0] in {"consistency", "distillation", *STEPS}
    }


@files(SCIENCE)
def test_the_science_stands_on_models_and_utils(path):
    assert not {name for name in imports(path) if name.split(".")[0] in {"experiments", *STEPS}}


@files(CONSISTENCY)
def test_consistency_knows_no_way_to_distil(path):
    assert not {name for name in imports(path) if name.split(".")[0] == "distillation"}


@files(SCRIPTS)
def test_no_script_imports_another(path):
    assert not imports(path) & STEPS


@files(SCRIPTS + SCIENCE + MODELS + UTILS)
def test_nothing_happens_at_import(path):
    calls = [node for node in at_import(parse(path)) if isinstance(node, ast.Call)]
    # Chooses nothing
    calls = [call for call in calls if ast.unparse(call) != "torch.device('cpu')"]
    assert not {
        f"{called(call)} in line {call.lineno}" for call in calls if called(call) in EFFECTS
    }


def test_imports_are_silent_and_ignore_the_command_line():
    """All of them in one process, whose command line would end any parser."""
    names = [path.stem for path in SCRIPTS]
    names += [
        ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SCIENCE + MODELS + UTILS
    ]
    program = (
        "import importlib, sys, torch\nbefore = torch.random.get_rng_state(),"
        f" torch.get_num_threads()\nfor name in {names}: importlib.import_module(name)\nassert"
        " torch.equal(before[0], torch.random.get_rng_state()) and before[1] =="
        " torch.get_num_threads()\nassert not torch.cuda.is_initialized()\n"
    )
    words = [sys.executable, "-c", program, "--no-such-option"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_step_loads_no_library_that_it_does_not_use_yet():
    """Behind its options a step imports PyTorch, and nothing else that takes long."""
    program = (
        "import importlib, sys\n"
        f"for name in {sorted(STEPS)}: importlib.import_module(name).build_parser()\n"
        f"print(*sorted(set({HEAVY}) & sys.modules.keys()))\n"
    )
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


@files(SCIENCE + MODELS + UTILS)
def test_args_stay_in_scripts_and_options(path):
    args_rooms = (
        "parser.py",
        "options.py",
        "option_groups.py",
        "hsakd_options.py",
        "fit_options.py",
    )
    if path.parent in (ROOT / "utils", ROOT / "distillation") and path.name in args_rooms:
        return
    tree = parse(path)
    taken = {
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "args"
    }
    assert not taken, f"lines {sorted(taken)} read options that should come by name"
    assert "argparse" not in imports(path)


@files(SCRIPTS)
def test_args_go_no_further_than_main_and_the_checks_of_options(path):
    """Every other function of a step takes a group of options, or plain values."""
    at_home = {"main", "check_options", *({"fill"} if path.stem == "DCM" else set())}
    takers = {
        node.name
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(name, ast.Name) and name.id == "args" for name in ast.walk(node))
    }
    assert takers <= at_home


@files(SCRIPTS)
def test_every_step_is_a_parser_and_a_command(path):
    functions = {node.name: node for node in parse(path).body if isinstance(node, ast.FunctionDef)}
    assert {"build_parser", "main"} <= set(functions)
    assert [ast.unparse(decorator) for decorator in functions["main"].decorator_list] == ["command"]
    assert [argument.arg for argument in functions["main"].args.args] == ["argv"]
    assert ast.get_docstring(parse(path))


def test_no_room_is_called_after_nothing():
    names = {path.stem for path in SCIENCE + MODELS + UTILS}
    assert not names & {"misc", "helpers", "utils", "common", "tools", "stuff"}
