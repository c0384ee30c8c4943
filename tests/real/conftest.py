"""What all real clients share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.daemons import world_directory
from support.npm import install


@pytest.fixture(scope="session")
def npm_packages() -> Iterator[Path]:
    """The directory of the installed npm packages, readable for servers without rights."""
    with world_directory("npm") as place:
        yield install(place)
