from __future__ import annotations

import pytest

from sbxproxy.net.engine import Engine


@pytest.fixture
async def engine(nursery):
    engine = Engine()
    await nursery.start(engine.run)
    return engine
