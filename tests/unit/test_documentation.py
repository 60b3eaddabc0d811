"""Documentation: commands in README.md and docs/ parse, and what they link to is there."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
NOT_RUN_AS_THEY_STAND = ("…", "--help", "git clone")


def commands() -> list[tuple[str, str]]:
    """Give every line `python SCRIPT.py …` of a code block, with its page; continued lines are joined."""
    found = []
    for page in PAGES:
        joined = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in joined.splitlines():
            match = re.match(r"\s*(?:python|torchrun.*\d) (\w+)\.py (.*)", line)
            if (
                match
                and match[1] in SCRIPTS
                and not any(word in line for word in NOT_RUN_AS_THEY_STAND)
            ):
                found.append((page.name, f"{match[1]} {match[2]}"))
    return found


def test_the_pages_have_commands():
    assert len(commands()) > 15


@pytest.mark.parametrize(("page", "command"), commands())
def test_a_documented_command_parses(page, command):
    # Brackets of several words stand for a file, as in the authors' README: [Net A].
    words = re.sub(r"\[[A-Za-z][\w -]*\]", "FILE.pth.tar", command).partition("  #")[0]
    script, *options = shlex.split(words)
    importlib.import_module(script).build_parser().parse_args(options)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [
        target
        for target in targets
        if not target.startswith("http") and not (page.parent / target).exists()
    ]
    assert not missing
