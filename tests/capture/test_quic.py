"""Real QUIC clients: refused at once in every mode, so that those that can go on with TCP do."""

import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from importlib.util import find_spec

import pytest

from support.captured import MODES, ROOT, as_user
from support.certs import Root
from support.outer import RESOLVER, open_outer
from support.programs import unavailable
from support.resolver import Resolver

SERVER, CLIENT = (str(ROOT / "tests" / "support" / name) for name in ("quic_server.py", "quic_client.py"))
ADDRESSES = {"quic.example.": "1.2.3.4"}
POLICIES = {
    "deny-all": ["--deny-all"],
    "other name": ["--allow", "other.example"],
    "the name": ["--allow", "quic.example"],
    "its range": ["--allow-cidr", "1.2.3.0/24"],
    "allow-all": ["--allow-all"],
}

# curl's own order for https: HTTP/3 first, and TLS over TCP when that fails.
CURL = """
import json, sys, time
from curl_cffi import CurlHttpVersion, requests
started = time.monotonic()
try:
    answer = requests.get(sys.argv[1], verify=sys.argv[2], http_version=CurlHttpVersion[sys.argv[3]], timeout=20)
    outcome = answer.text
except requests.exceptions.RequestException as error:
    outcome = type(error).__name__
print(json.dumps([outcome, time.monotonic() - started]))
"""


@pytest.fixture(params=MODES)
def mode(request):
    as_user(request.param)
    return request.param


@pytest.fixture
def site(open_path):
    if find_spec("aioquic") is None:
        unavailable("the Python package aioquic is not installed")
    with (
        open_outer(("SOCK_DGRAM", RESOLVER, 53)) as outer,
        Resolver(outer.sockets[0], ADDRESSES),
        open_site(outer, open_path) as site,
    ):
        yield site


class Site:
    def __init__(self, outer, ca, process):
        self.outer, self.ca, self.seen = outer, ca, []
        self._process, self._ready = process, threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self._process.stdout:
            if line == "ready\n":
                self._ready.set()
            else:
                self.seen.append(line.strip())

    def wait(self):
        assert self._ready.wait(30), self._process.poll()

    def close(self):
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._process.stdout.close()
        self._process.stdin.close()


@contextmanager
def open_site(outer, directory):
    """An HTTP server at one address of the Internet, over QUIC and over TLS."""
    root = Root()
    leaf = root.leaf("quic.example")
    key, certificate = leaf.pem.split(b"-----BEGIN CERT", 1)
    for name, content in {"ca": root.pem, "key": key, "certificate": b"-----BEGIN CERT" + certificate}.items():
        (directory / name).write_bytes(content)
    argv = [sys.executable, SERVER, "1.2.3.4", "8443", str(directory / "certificate"), str(directory / "key")]
    process = subprocess.Popen(outer.internet(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    site = Site(outer, str(directory / "ca"), process)
    try:
        site.wait()
        yield site
    finally:
        site.close()


def test_where_nothing_holds_them_they_get_through(site, mode):
    """Else a refusal would prove nothing."""
    done = site.outer.plain(mode, CLIENT, "1.2.3.4", "8443", "quic.example", site.ca)
    assert json.loads(done.stdout)[0] == "over quic", done.stderr
    assert "request quic" in site.seen
    done = site.outer.plain(mode, "-c", CURL, "https://quic.example:8443/", site.ca, "V3")
    assert json.loads(done.stdout)[0] == "over quic", done.stderr


@pytest.mark.parametrize("policy", POLICIES)
def test_a_quic_client_is_refused_at_once(site, mode, policy):
    done = site.outer.run(
        mode, *POLICIES[policy], "--quiet", "--", as_user(mode)[-1], CLIENT, "1.2.3.4", "8443", "quic.example", site.ca
    )
    outcome, seconds = json.loads(done.stdout)
    assert outcome == "EPERM", done.stderr
    assert seconds < 15  # its own patience is 20
    assert "datagram" not in site.seen


@pytest.mark.parametrize("policy", ["the name", "allow-all"])
def test_curl_goes_on_with_tcp(site, mode, policy):
    curl = [as_user(mode)[-1], "-c", CURL, "https://quic.example:8443/", site.ca]
    done = site.outer.run(mode, *POLICIES[policy], "--quiet", "--", *curl, "V3")
    outcome, seconds = json.loads(done.stdout)
    assert outcome == "over tls", done.stderr
    assert seconds < 15
    assert site.seen == ["request tls"]
    done = site.outer.run(mode, *POLICIES[policy], "--quiet", "--", *curl, "V3ONLY")
    outcome, seconds = json.loads(done.stdout)
    assert outcome.endswith("Error")
    assert seconds < 15
    assert site.seen == ["request tls"]


def test_a_name_that_is_not_allowed_gets_neither(site, mode):
    curl = [as_user(mode)[-1], "-c", CURL, "https://quic.example:8443/", site.ca, "V3"]
    site.outer.packets()
    done = site.outer.run(mode, "--deny-all", "--quiet", "--", *curl)
    outcome, seconds = json.loads(done.stdout)
    assert outcome == "DNSError"
    assert seconds < 15
    assert site.outer.packets() == []
    assert site.seen == []
