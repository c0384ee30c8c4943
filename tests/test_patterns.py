"""Regular expressions of the source are such as every supported Python reads rightly."""

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
