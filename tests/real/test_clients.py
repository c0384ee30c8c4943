"""Real clients, one row each: allowed, denied, and given a credential that they never held.

Everything runs on loopback, behind the variables that a sandbox gives its programs and nothing else. In the first column the client
meets the origin's own certificate, so its trust file holds the origin's authority too; in the third it trusts the sandbox's file
as it is, and would refuse the origin's certificate.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from support.firewall import Firewall, open_firewall
from support.origin import HELLO, Origin
from support.programs import Ran, require, run, unavailable
from support.site import TARBALL, WHEEL, make_repository, site, tarball, wheel

pytestmark = pytest.mark.real

NAME = "origin.test.example"
CANARY = "canary-2f6c0b9d51"


@dataclass(frozen=True)
class Case:
    """What a client is told: where to go, whom to trust, and a directory of its own."""

    url: str
    bundle: str
    directory: Path
    node_modules: Path | None


@dataclass(frozen=True)
class Client:
    argv: Callable[[Case], Sequence[str]]
    expects: str = HELLO.decode().strip()
    success: Callable[[Case, Ran], bool] | None = None

    def succeeded(self, case: Case, ran: Ran) -> bool:
        if self.success is not None:
            return ran.code == 0 and self.success(case, ran)
        return ran.code == 0 and self.expects in ran


def _python(script: str, *modules: str) -> Callable[[Case], Sequence[str]]:
    def argv(case: Case) -> Sequence[str]:
        for module in modules:
            if find_spec(module) is None:
                unavailable(f"the Python package {module} is not installed")
        return [sys.executable, "-c", script, case.url]

    return argv


def _curl(case: Case) -> Sequence[str]:
    return [require("curl"), "-sS", "--fail", "--max-time", "30", case.url]


def _wget(case: Case) -> Sequence[str]:
    # Debian's is a GnuTLS program: no variable tells it whom to trust.
    return [require("wget"), "-nv", "-O", "-", "--tries=1", "--timeout=30", f"--ca-certificate={case.bundle}", case.url]


_FETCH = """
const fetched = await fetch(process.argv[2]);
process.stdout.write(await fetched.text());
"""


def _node(case: Case) -> Sequence[str]:
    """``fetch`` obeys proxy variables from Node 22.21 and 24.0; before, undici's own agent does the same for it."""
    node = require("node")
    script = case.directory / "fetch.mjs"
    script.write_text(_FETCH)
    if case.node_modules is not None:
        agent = (case.node_modules / "undici" / "index.js").as_uri()
        script.write_text(
            f"import undici from {json.dumps(agent)};\nundici.setGlobalDispatcher(new undici.EnvHttpProxyAgent());\n{_FETCH}"
        )
    return [node, str(script), case.url]


def _git(case: Case) -> Sequence[str]:
    return [require("git"), "clone", "--quiet", f"{case.url}/repo.git", str(case.directory / "clone")]


def _cloned(case: Case, _ran: Ran) -> bool:
    return (case.directory / "clone" / "README").read_bytes() == HELLO


def _pip(case: Case) -> Sequence[str]:
    if find_spec("pip") is None:
        unavailable("the Python package pip is not installed")
    return [
        sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--retries", "1", "--dest", str(case.directory),
        "--index-url", f"{case.url}/simple/", "toy",
    ]  # fmt: skip


def _downloaded(case: Case, _ran: Ran) -> bool:
    return (case.directory / WHEEL).read_bytes() == wheel()


def _npm(case: Case) -> Sequence[str]:
    return [
        require("npm"), "pack", "--fetch-retries=0", f"--cache={case.directory / 'cache'}", f"--registry={case.url}/npm/",
        "--userconfig=/dev/null", "--globalconfig=/dev/null/none", "toy",
    ]  # fmt: skip


def _packed(case: Case, _ran: Ran) -> bool:
    return (case.directory / TARBALL).read_bytes() == tarball()


_REQUESTS = "import requests, sys; r = requests.get(sys.argv[1], timeout=30); r.raise_for_status(); print(r.text)"
_HTTPX = "import httpx, sys; print(httpx.get(sys.argv[1], timeout=30).raise_for_status().text)"
_URLLIB = "import urllib.request, sys; print(urllib.request.urlopen(sys.argv[1], timeout=30).read().decode())"
_AIOHTTP = """
import aiohttp, asyncio, sys
async def main():
    async with aiohttp.ClientSession(trust_env=True) as session, session.get(sys.argv[1]) as response:
        response.raise_for_status()
        print(await response.text())
asyncio.run(main())
"""

CLIENTS = {
    "curl": Client(_curl),
    "wget": Client(_wget),
    "urllib": Client(_python(_URLLIB)),
    "requests": Client(_python(_REQUESTS, "requests")),
    "httpx": Client(_python(_HTTPX, "httpx")),
    "aiohttp": Client(_python(_AIOHTTP, "aiohttp")),
    "node": Client(_node),
    "git": Client(_git, success=_cloned),
    "pip": Client(_pip, success=_downloaded),
    "npm": Client(_npm, success=_packed),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one bare repository in it."""
    return make_repository(tmp_path_factory.mktemp("git"))


@pytest.fixture(scope="session")
def node_modules(request: pytest.FixtureRequest) -> Path | None:
    """Where undici is, for a Node whose ``fetch`` knows no proxy variables; ``None`` if it does."""
    version = subprocess.run([require("node"), "--version"], check=True, capture_output=True, text=True).stdout
    major, minor = (int(part) for part in version.removeprefix("v").split(".")[:2])
    if major >= 24 or (major, minor) >= (22, 21):
        return None
    packages: Path = request.getfixturevalue("npm_packages")
    return packages


@pytest.fixture
def origin(request: pytest.FixtureRequest, tmp_path: Path) -> Origin:
    root = request.getfixturevalue("repository") if request.node.callspec.params["client"] == "git" else tmp_path
    return Origin((NAME,), respond=site(root))


async def _run(
    firewall: Firewall, origin: Origin, client: str, request: pytest.FixtureRequest, directory: Path, *roots: Path
) -> tuple[bool, Ran, dict[str, str]]:
    env = firewall.environment(*roots)
    for name in [name for name in env if name.startswith("PIP_") and name != "PIP_CERT"]:
        del env[name]  # the machine's own configuration must not answer for the origin
    env["PIP_CONFIG_FILE"] = "/dev/null"
    case = Case(
        url=f"https://{NAME}:{origin.port}",
        bundle=env["SSL_CERT_FILE"],
        directory=directory,
        node_modules=request.getfixturevalue("node_modules") if client == "node" else None,
    )
    ran = await run(CLIENTS[client].argv(case), env, cwd=directory)
    return ran.code == 0 and CLIENTS[client].succeeded(case, ran), ran, env


@pytest.mark.parametrize("client", CLIENTS)
async def test_allowed(client: str, origin: Origin, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A domain without rules is relayed: the client meets the origin's own certificate."""
    async with open_firewall({"allow": [NAME]}, origin, directory=tmp_path) as firewall:
        done, ran, _ = await _run(firewall, origin, client, request, tmp_path, origin.write_root(tmp_path))
        assert done, ran.output
        assert origin.requests
        await firewall.next_closed()
    assert {(event.decision, event.reason, event.rule) for event in firewall.closed()} == {("relay", "domain-allowed", NAME)}


@pytest.mark.parametrize("client", CLIENTS)
async def test_denied(client: str, origin: Origin, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The client is told, in words that its user sees, and nothing reaches the origin."""
    async with open_firewall({"allow": ["other.test.example"]}, origin, directory=tmp_path) as firewall:
        done, ran, _ = await _run(firewall, origin, client, request, tmp_path, origin.write_root(tmp_path))
        assert not done
        assert ran.code != 0
        assert re.search(r"\b403\b|Forbidden", ran.output), ran.output
        await firewall.next_closed()
    assert origin.connections == 0
    assert set(firewall.reasons) == {"domain-not-allowed"}


@pytest.mark.parametrize("client", CLIENTS)
async def test_injected(client: str, origin: Origin, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The origin sees the credential once in every request; the client's environment and output never hold it."""
    policy = {"allow": {NAME: [{"transform": [{"headers": {"Authorization": "Bearer ${secret:token}"}}]}]}}
    async with open_firewall(policy, origin, directory=tmp_path, secrets={"token": CANARY}) as firewall:
        done, ran, env = await _run(firewall, origin, client, request, tmp_path)
        assert done, ran.output
        await firewall.next_closed()
    assert origin.requests
    assert {tuple(seen.all("authorization")) for seen in origin.requests} == {(f"Bearer {CANARY}",)}
    assert CANARY not in ran.output
    assert not [name for name, value in env.items() if CANARY in value]
    assert CANARY not in repr(firewall.events)
    assert {event.decision for event in firewall.closed()} == {"inspect"}


@pytest.mark.parametrize("client", ["curl", "urllib", "requests"])
async def test_a_client_without_the_sandboxs_root_is_not_fooled(
    client: str, origin: Origin, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Termination is no secret: who doesn't trust the sandbox's authority refuses, and no request is sent."""
    policy = {"allow": {NAME: [{"transform": [{"headers": {"Authorization": "Bearer ${secret:token}"}}]}]}}
    async with open_firewall(policy, origin, directory=tmp_path, secrets={"token": CANARY}) as firewall:
        env = firewall.environment()
        root = str(origin.write_root(tmp_path))
        env = {name: root if value.endswith("bundle.pem") else value for name, value in env.items()}
        case = Case(f"https://{NAME}:{origin.port}", root, tmp_path, None)
        ran = await run(CLIENTS[client].argv(case), env, cwd=tmp_path)
        assert ran.code != 0
        assert re.search("certificate|CERTIFICATE", ran.output)
    assert origin.requests == []
