"""Settings on their way to a worker, and its part of them."""

from __future__ import annotations

import dataclasses
import json
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from sbxproxy import Limits, Settings
from sbxproxy.hostname import Hostname
from sbxproxy.workers.share import SHARED, as_values, from_values, share

OTHERS = Settings(
    private_networks=(ip_network("10.0.0.0/8"), ip_network("fd00::/8")),
    never=(ip_network("10.1.0.0/16"),),
    resolve={Hostname("a.example"): (ip_address("10.0.0.1"), ip_address("fd00::1"))},
    nameservers=((ip_address("10.0.0.53"), 53),),
    upstream_roots=Path("/roots.pem"),
    extra_upstream_roots=(Path("/extra.pem"),),
    engine=not Settings().engine,
    limits=Limits(flows=7, idle=None, head=9999),
)


def test_every_setting_gets_there() -> None:
    defaults = Settings()
    for field in dataclasses.fields(Settings):
        assert getattr(OTHERS, field.name) != getattr(defaults, field.name), f"{field.name} is not tested"
    again = from_values(json.loads(json.dumps(as_values(OTHERS))))
    normal = {name: tuple(map(tuple, value.items())) if isinstance(value, dict) else value for name, value in fields_of(OTHERS)}
    for name, value in fields_of(again):
        if name == "resolve":
            assert {key: tuple(addresses) for key, addresses in value.items()} == OTHERS.resolve
        elif name == "extra_upstream_roots":
            assert tuple(value) == OTHERS.extra_upstream_roots
        else:
            assert value == normal[name], name


def fields_of(settings: Settings) -> list[tuple[str, object]]:
    return [(field.name, getattr(settings, field.name)) for field in dataclasses.fields(settings)]


def test_paths_mean_the_same_wherever_a_worker_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    values = as_values(Settings(upstream_roots=Path("a.pem"), extra_upstream_roots=[Path("b.pem")]))
    assert values["upstream_roots"] == str(tmp_path / "a.pem")
    assert values["extra_upstream_roots"] == [str(tmp_path / "b.pem")]


@pytest.mark.parametrize("count", [1, 2, 3, 256])
def test_parts_are_divided_and_rounded_up(count: int) -> None:
    whole = Settings(limits=Limits(flows=100))
    part = share(whole, count)
    for name in SHARED:
        if name != "buffered_bytes_per_sandbox":
            assert getattr(part.limits, name) == -(-getattr(whole.limits, name) // count)
    assert part.limits.leaves == whole.limits.leaves
    assert share(Settings(), count).limits.flows is None
    assert (count == 1) == (part == whole)


def test_a_part_has_room_for_the_longest_message() -> None:
    limits = share(Settings(), 256).limits
    assert limits.buffered_bytes_per_sandbox == 2 * max(limits.head, limits.client_hello) < 32 * 1024 * 1024
    small = Settings(limits=Limits(buffered_bytes_per_sandbox=1000))
    assert share(small, 4).limits.buffered_bytes_per_sandbox == 1000


@pytest.mark.parametrize("change", [{"nameservers": [["x", 53]]}, {"limits": {"flows": -1}}, {"never": ["x"]}])
def test_what_is_no_setting_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        from_values({**as_values(OTHERS), **change})
