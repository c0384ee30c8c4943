"""Plugins are found by entry points of real distributions, made here as pip would leave them on disk."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sbxproxy import ConfigurationError, plugins

Install = Callable[..., None]

MODULE = """
imported = True

class Sign:
    def __init__(self, *, key=""):
        self.key = key
    async def on_request(self, flow, request):
        return request

class Strict:
    async def decide(self, flow):
        return flow.decision

class Misspelt:
    async def decides(self, flow):
        return flow.decision

class Echo:
    async def handle(self, flow, client, upstream):
        pass

class Ends:
    async def accept(self, flow, client):
        return client
    async def connect(self, flow, upstream, name):
        return upstream

def sniff(data):
    raise NotImplementedError

def observe(event):
    pass

class Broken:
    def __init__(self):
        raise RuntimeError("broken at start")
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a distribution with these entry points (group: [name = value]) on the path."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(distribution: str, **groups: str) -> None:
        module = distribution.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(MODULE)
        info = tmp_path / f"{module}-2.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 2.5\n")
        sections = [f"[sbxproxy.{group}]\n{lines.replace('MODULE', module)}\n" for group, lines in groups.items()]
        (info / "entry_points.txt").write_text("\n".join(sections))

    return put


def test_what_is_installed_is_listed_without_importing_it(install: Install) -> None:
    install("sbx-listed", transforms="sign = MODULE:Sign", policies="strict = MODULE:Strict")
    found = [item for item in plugins.installed() if item.distribution == "sbx-listed"]
    assert [(item.slot, item.name, item.value, item.version) for item in found] == [
        ("policies", "strict", "sbx_listed:Strict", "2.5"),
        ("transforms", "sign", "sbx_listed:Sign", "2.5"),
    ]
    assert "sbx_listed" not in sys.modules


def test_only_what_is_named_is_loaded_into_its_slot(install: Install) -> None:
    install(
        "sbx-named", transforms="n-sign = MODULE:Sign", policies="n-strict = MODULE:Strict", handlers="n-echo = MODULE:Echo",
        sniffers="n-sniff = MODULE:sniff", observers="n-observe = MODULE:observe", terminators="n-ends = MODULE:Ends",
    )  # fmt: skip
    pipeline = plugins.load(["n-sign", "n-strict", "n-echo", "n-sign"])
    assert [type(part).__name__ for part in pipeline.policies] == ["Strict"]
    assert [factory.__name__ for factory in pipeline.transforms.values()] == ["Sign"]  # a class: each rule has its own config
    assert list(pipeline.handlers) == ["n-echo"]
    assert not pipeline.sniffers
    assert not pipeline.observers
    assert pipeline.terminator is None
    whole = plugins.load(["n-sniff", "n-observe", "n-ends"])
    assert len(whole.sniffers) == len(whole.observers) == 1
    assert type(whole.terminator).__name__ == "Ends"
    assert not plugins.load([]).transforms


def test_an_unknown_name_lists_what_is_installed(install: Install) -> None:
    install("sbx-known", handlers="known-echo = MODULE:Echo")
    with pytest.raises(ConfigurationError, match=r"'known-eco'.*known-echo"):
        plugins.load(["known-eco"])


def test_a_name_that_two_distributions_claim_is_taken_from_neither(install: Install) -> None:
    """Else a second package could stand in for the first."""
    install("sbx-first", transforms="claimed = MODULE:Sign")
    install("sbx-second", transforms="claimed = MODULE:Sign")
    with pytest.raises(ConfigurationError, match="sbx-first and sbx-second"):
        plugins.load(["claimed"])


def test_one_name_may_fill_several_slots_of_one_distribution(install: Install) -> None:
    install("sbx-both", transforms="both = MODULE:Sign", policies="both = MODULE:Strict")
    pipeline = plugins.load(["both"])
    assert (len(pipeline.policies), list(pipeline.transforms)) == (1, ["both"])


@pytest.mark.parametrize(
    ("group", "value", "says"),
    [
        ("policies", "MODULE:Misspelt", "decide"),
        ("handlers", "MODULE:Broken", "RuntimeError"),
        ("handlers", "MODULE:Absent", "AttributeError"),
        ("handlers", "no_such_module_here:Echo", "ModuleNotFoundError"),
    ],
)
def test_a_plugin_that_does_not_fit_or_load_is_an_error_at_start(group: str, value: str, says: str, install: Install) -> None:
    install("sbx-bad", **{group: f"bad-one = {value}"})
    with pytest.raises(ConfigurationError, match=says):
        plugins.load(["bad-one"])


def test_there_is_one_terminator(install: Install) -> None:
    install("sbx-ends", terminators="ends-a = MODULE:Ends\nends-b = MODULE:Ends")
    with pytest.raises(ConfigurationError, match="one slot"):
        plugins.load(["ends-a", "ends-b"])
