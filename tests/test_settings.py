"""Settings refuse at once what would bound or forbid nothing later."""

import dataclasses
from ipaddress import ip_address

import pytest

from sbxproxy.address import parse_network
from sbxproxy.errors import ConfigurationError
from sbxproxy.settings import Limits, Settings

FIELDS = [field.name for field in dataclasses.fields(Limits)]
OPTIONAL = ("flows", "idle")


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", [0, -1, float("nan"), "5", True, b"5"])
def test_a_limit_that_limits_nothing_is_refused_by_name(name, value):
    with pytest.raises(ConfigurationError, match=rf"Limits\.{name} must be a positive"):
        Limits(**{name: value})


@pytest.mark.parametrize("name", FIELDS)
def test_only_a_limit_that_says_so_can_be_turned_off(name):
    if name in OPTIONAL:
        assert getattr(Limits(**{name: None}), name) is None
    else:
        with pytest.raises(ConfigurationError, match=name):
            Limits(**{name: None})


def test_counts_are_whole_and_times_need_not_be():
    with pytest.raises(ConfigurationError, match=r"Limits\.head must be a positive int"):
        Limits(head=float("inf"))
    assert Limits(idle=0.5, connect=1).idle == 0.5


def test_every_limit_is_explained():
    assert Limits.__doc__ is not None
    assert [name for name in FIELDS if f"\n        {name}: " not in Limits.__doc__] == []


@pytest.mark.parametrize("name", ["never", "private_networks"])
@pytest.mark.parametrize("value", [["10.0.0.0/8"], "10.0.0.0/8", [None]])
def test_a_network_given_as_text_is_refused_at_once(name, value):
    """It would otherwise fail, or forbid nothing, when the first connection is judged."""
    with pytest.raises(ConfigurationError, match=rf"Settings\.{name} takes networks"):
        Settings(**{name: value})


def test_a_list_changed_afterwards_changes_no_settings():
    networks = [parse_network("10.0.0.0/8")]
    settings = Settings(never=networks)
    networks.clear()
    assert settings.never == (parse_network("10.0.0.0/8"),)


@pytest.mark.parametrize(
    "server",
    ["192.0.2.1", ("192.0.2.1", 53), (ip_address("192.0.2.1"), 0), (ip_address("192.0.2.1"), 65536), (ip_address("::1"), "53")],
)
def test_a_name_server_that_is_none_is_refused_at_once(server):
    with pytest.raises(ConfigurationError, match=r"Settings\.nameservers takes pairs"):
        Settings(nameservers=[server])


def test_name_servers_are_taken_as_they_are_now():
    servers = [(ip_address("192.0.2.1"), 53), (ip_address("2001:db8::1"), 5353)]
    settings = Settings(nameservers=servers)
    servers.clear()
    assert len(settings.nameservers) == 2
