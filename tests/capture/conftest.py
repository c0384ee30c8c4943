"""What tests of captured commands share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.daemons import world_directory


@pytest.fixture
def open_path() -> Iterator[Path]:
    """An empty directory that every user reaches; pytest's own are closed, and closed again by the next pytest that starts."""
    with world_directory("capture") as directory:
        yield directory
