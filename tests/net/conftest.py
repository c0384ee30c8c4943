from __future__ import annotations

import pytest
import trio.testing

from sbxproxy.net.engine import Engine


@pytest.fixture
def patient_clock() -> trio.testing.MockClock:
    """A clock that jumps only when sockets and threads have been quiet for a while too."""
    return trio.testing.MockClock(autojump_threshold=0.2)


@pytest.fixture
async def engine(nursery):
    engine = Engine()
    await nursery.start(engine.run)
    return engine
