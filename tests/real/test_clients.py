"""Real clients, one row each: allowed, denied, and given a credential that they never held.

Everything runs on loopback, behind the variables that a sandbox gives its programs and nothing else. In the first column the client
meets the origin's own certificate, so its trust file holds the origin's authority too; in the third it trusts the sandbox's file
as it is, and would refuse the origin's certificate.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import trio

from support.firewall import Firewall, open_firewall
from support.origin import HELLO, Origin, Reply, Seen
from support.programs import Ran, require, run, unavailable

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
    return (case.directory / WHEEL).read_bytes() == _wheel()


def _npm(case: Case) -> Sequence[str]:
    return [
        require("npm"), "pack", "--fetch-retries=0", f"--cache={case.directory / 'cache'}", f"--registry={case.url}/npm/",
        "--userconfig=/dev/null", "--globalconfig=/dev/null/none", "toy",
    ]  # fmt: skip


def _packed(case: Case, _ran: Ran) -> bool:
    return (case.directory / TARBALL).read_bytes() == _tarball()


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

# -- what the origin serves: a line of text, a repository, a wheel, an npm package

WHEEL = "toy-1.0-py3-none-any.whl"
TARBALL = "toy-1.0.0.tgz"


def _wheel() -> bytes:
    files = {
        "toy.py": "",
        "toy-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n",
        "toy-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "toy-1.0.dist-info/RECORD": "",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return buffer.getvalue()


def _tarball() -> bytes:
    content = json.dumps({"name": "toy", "version": "1.0.0"}).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("package/package.json")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0)


def _packument(base: str) -> bytes:
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(_tarball()).digest()).decode()
    dist = {"tarball": f"{base}/npm/toy/-/{TARBALL}", "integrity": integrity}
    version = {"name": "toy", "version": "1.0.0", "dist": dist}
    return json.dumps({"name": "toy", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}).encode()


async def _git_backend(root: Path, seen: Seen) -> Reply:
    """Run git's own server, a CGI program (RFC 3875)."""
    path, _, query = seen.target.partition("?")
    env = {
        "PATH": "/usr/bin:/bin", "GIT_PROJECT_ROOT": str(root), "GIT_HTTP_EXPORT_ALL": "1", "REQUEST_METHOD": seen.method,
        "PATH_INFO": path, "QUERY_STRING": query, "CONTENT_TYPE": seen.one("content-type") or "",
        "CONTENT_LENGTH": str(len(seen.body)), "HTTP_CONTENT_ENCODING": seen.one("content-encoding") or "",
        "GIT_PROTOCOL": seen.one("git-protocol") or "", "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
    }  # fmt: skip
    done = await trio.run_process(["git", "http-backend"], stdin=seen.body, capture_stdout=True, env=env)
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    headers = [(name, value) for name, _, value in (line.partition(": ") for line in head.decode().split("\r\n"))]
    status = next((int(value[:3]) for name, value in headers if name.lower() == "status"), 200)
    return Reply(body, status, tuple((name, value) for name, value in headers if name.lower() != "status"))


def _site(root: Path, origin: list[Origin]) -> Callable[[Seen], object]:
    async def respond(seen: Seen) -> Reply:
        match seen.target.partition("?")[0]:
            case path if path.startswith("/repo.git"):
                return await _git_backend(root, seen)
            case "/simple/toy/":
                return Reply(f'<a href="/files/{WHEEL}">{WHEEL}</a>'.encode(), headers=(("Content-Type", "text/html"),))
            case path if path == f"/files/{WHEEL}":
                return Reply(_wheel())
            case "/npm/toy":
                return Reply(_packument(f"https://{NAME}:{origin[0].port}"), headers=(("Content-Type", "application/json"),))
            case path if path == f"/npm/toy/-/{TARBALL}":
                return Reply(_tarball())
        return Reply()

    return respond


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one bare repository in it."""
    root = tmp_path_factory.mktemp("git")
    git = [require("git"), "-c", "user.name=test", "-c", "user.email=test@test.example", "-c", "init.defaultBranch=main"]
    work = root / "work"
    for command in (["init", "-q", str(work)], ["-C", str(work), "add", "."], ["-C", str(work), "commit", "-qm", "first"]):
        if command[-1] == ".":
            (work / "README").write_bytes(HELLO)
        subprocess.run([*git, *command], check=True)
    subprocess.run([*git, "clone", "-q", "--bare", str(work), str(root / "repo.git")], check=True)
    return root


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
    box: list[Origin] = []
    box.append(Origin((NAME,), respond=_site(root, box)))
    return box[0]


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
