"""The source keeps clear of what the older ones of the supported Python versions get wrong."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for place in ("src", "plugins") for path in (ROOT / place).rglob("*.py") if ".venv" not in path.parts)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_h20_no_group_is_repeated_possessively(path):
    """Python before 3.11.5 doesn't go back to where the last round ended (gh-106052): ``(?:/a)*+/?`` matches ``//`` there.

    Single characters and sets of them may be.
    """
    found = re.findall(r"(?<!\()\)(?:[*+?]|\{[0-9,]+\})\+.*|\(\?>.*", path.read_text())
    assert found == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_raised_in_except_star(path):
    """Python before 3.11.4 wraps it in a group (gh-103590), which callers don't expect."""
    handlers = [
        handler for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.TryStar) for handler in node.handlers
    ]
    assert not [node.lineno for handler in handlers for node in ast.walk(handler) if isinstance(node, ast.Raise) and node.exc]
