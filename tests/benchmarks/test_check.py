"""A subject that does something else than it is measured for is found out before it is measured."""

from __future__ import annotations

import shutil
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.check import Wrong, check_denied, check_terminated, check_tunnel
from benchmarks.rig import HELLO_NAME, Load, open_rig
from benchmarks.subjects import By
from benchmarks.subjects.ours import DIRECT, NAIVE, SBXPROXY

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
    pytest.mark.skipif(
        not shutil.which("cc") or not Path("/usr/include/openssl/ssl.h").exists(), reason="needs cc and libssl-dev"
    ),
    pytest.mark.real,
]


@pytest.fixture(scope="module")
def stack():
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def rig(stack):
    return stack.enter_context(open_rig())


@pytest.fixture(scope="module")
def naive(stack, rig):
    return NAIVE.start(stack, rig)


@pytest.fixture(scope="module")
def sbxproxy(stack, rig):
    return SBXPROXY.start(stack, rig)


def test_sbxproxy_does_what_it_is_measured_for(rig, sbxproxy):
    check_tunnel(rig, sbxproxy)
    check_terminated(rig, sbxproxy)
    check_denied(sbxproxy)


def test_no_proxy_is_a_tunnel(stack, rig):
    check_tunnel(rig, DIRECT.start(stack, rig))


def test_who_passes_tls_on_does_not_terminate(rig, naive):
    with pytest.raises(Wrong, match="another certificate"):
        check_terminated(rig, replace(naive, terminated=By.ADDRESS, authority=rig.certificates.proxy_ca))


def test_who_adds_no_header_is_told(rig, naive):
    with pytest.raises(Wrong, match="the header did not arrive"):
        check_terminated(rig, replace(naive, terminated=By.ADDRESS, authority=rig.certificates.origin_ca))


def test_who_terminates_is_no_tunnel(rig, sbxproxy):
    """Under a name of the terminated hosts, sbxproxy shows its own certificate."""
    with pytest.raises(Wrong, match="another certificate"):
        check_terminated(rig, replace(sbxproxy, authority=rig.certificates.origin_ca))


def test_who_lets_everything_through_is_told(rig, naive):
    with pytest.raises(Wrong, match="was let through"):
        check_denied(replace(naive, denied=(f"127.0.0.1:{rig.ports['hello']}", "denied.example")))


def test_who_is_not_there_is_told(rig, naive):
    with pytest.raises(Wrong, match="no answer"):
        check_tunnel(rig, replace(naive, port=1))


def test_the_load_tells_why_it_failed(rig, sbxproxy):
    """A denied target is a failure, never a quick success."""
    denied = Load(mode="hello", port=sbxproxy.port, connect="denied.example:443", hello=rig.hello_files["hello"], seconds=0.2)
    measured = rig.measure(denied)
    assert measured.count == 0
    assert measured.failures > 0
    assert measured.why


def test_the_load_checks_what_answers_say(rig):
    """An answer that tells of no header counts as failed where one is expected."""
    straight = Load(mode="once", port=rig.ports["tls"], name=f"{HELLO_NAME}:1", seconds=0.2, concurrency=2)
    assert rig.measure(replace(straight, expect="0")).failures == 0
    wrong = rig.measure(replace(straight, expect="1"))
    assert wrong.count == 0
    assert wrong.failures > 0
    assert "isn't what it should be" in wrong.why
