"""The examples of other runtimes run: what isn't allowed is denied in its own words, and what is gets through with its header."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio

from sbxproxy.wire.proxy_protocol import build_proxy
from support.firewall import Firewall, open_firewall
from support.origin import HELLO, Origin
from support.programs import require, takes_root, unavailable
from support.talk import handshake, request

pytestmark = pytest.mark.real

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDS = {"unshare": "unshare", "bubblewrap": "bwrap", "runc": "runc", "gateway": "ip"}
NAME = "origin.test.example"
POLICY = {"allow": {NAME: [{"transform": [{"headers": {"authorization": "Bearer ${secret:token}"}}]}]}}
SECRETS = {"token": "canary-51c9"}
SOMEWHERE = "203.0.113.9"
"""What the guest believes to be the origin's address: where it dials doesn't matter."""


def needs(name):
    """Skip what can't run here; return the path with the programs that it takes."""
    places = os.environ["PATH"] + ":/usr/sbin:/sbin"
    program = NEEDS.get(name)
    if program is not None and not any(os.access(Path(place, program), os.X_OK) for place in places.split(":")):
        unavailable(f"{program} is not installed")
    if name == "gateway":
        takes_root()
    return places


def load(name):
    spec = spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", [*NEEDS, "vsock_ingress"])
def test_an_example_captures_its_guest(name):
    env = {**os.environ, "PATH": needs(name)}
    done = subprocess.run([sys.executable, EXAMPLES / f"{name}.py"], capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert "reason='plain-http'" in said
    assert '"error": "plain-http"' in said or "403 Forbidden" in said


async def seen_by(origin: Origin, firewall: Firewall) -> None:
    assert [seen.one("authorization") for seen in origin.requests] == ["Bearer canary-51c9"]
    event = await firewall.next_closed()
    assert (event.decision, event.server_name) == ("inspect", NAME)


@pytest.mark.parametrize("name", NEEDS)
async def test_a_guest_gets_what_is_allowed_with_the_header_that_it_never_sees(name, tmp_path, monkeypatch, capfd):
    """By a program that verifies whom it talks to."""
    monkeypatch.setenv("PATH", needs(name))
    origin = Origin((NAME,))
    async with open_firewall(POLICY, origin, directory=tmp_path, secrets=SECRETS) as firewall:
        url, there = f"https://{NAME}:{origin.port}/", f"{NAME}:{origin.port}:{SOMEWHERE}"
        with trio.fail_after(60):
            await load(name).confine(firewall.sandbox, [require("curl"), "-sS", "--fail", "--resolve", there, url])
        await seen_by(origin, firewall)
    said = "".join(capfd.readouterr())
    assert HELLO.decode() in said
    assert "canary" not in said


async def test_a_machine_gets_what_is_allowed_by_vsock(tmp_path):
    """The target comes from the header; the name, and with it the rules, from TLS inside."""
    origin = Origin((NAME,))
    async with open_firewall(POLICY, origin, directory=tmp_path, secrets=SECRETS) as firewall:
        place = tmp_path / "v.sock"
        await firewall.nursery.start(load("vsock_ingress").ingress, firewall.sandbox, place)
        authority, _ = firewall.sandbox.write_trust(tmp_path)
        stream = await trio.open_unix_socket(f"{place}_5000")
        await stream.send_all(build_proxy((ip_address("10.0.2.15"), 40000), (ip_address(SOMEWHERE), origin.port)))
        async with await handshake(stream, NAME, authority) as tls:
            assert (await request(tls, f"{NAME}:{origin.port}"))[2] == HELLO
        await seen_by(origin, firewall)
