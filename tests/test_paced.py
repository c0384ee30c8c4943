"""Items come as they are, and others get their turn in between."""

import pytest

from sbxproxy import paced as module
from sbxproxy.paced import paced


@pytest.mark.parametrize(("count", "ways"), [(0, 0), (9, 0), (10, 1), (25, 2), (30, 3)])
def test_after_each_piece_others_may_run(count: int, ways: int, monkeypatch):
    given = []
    monkeypatch.setattr(module, "give_way", lambda: given.append(None))
    assert list(paced(iter(range(count)), piece=10)) == list(range(count))
    assert len(given) == ways
