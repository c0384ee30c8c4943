"""pip and npm against the indexes that this machine is set up for: a download when the policy allows it, a clear refusal when not."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.firewall import open_firewall
from support.programs import require, run, unavailable

pytestmark = pytest.mark.real


@dataclass(frozen=True)
class Registry:
    url: str
    hosts: tuple[str, ...]
    networks: tuple[str, ...]


def _registry(url: str, *more: str) -> Registry:
    """Find the hosts' addresses here: a mirror may well be in a private network, which the operator then opens."""
    host = urlsplit(url).hostname
    if urlsplit(url).scheme != "https" or host is None:
        unavailable("the configured index is not an https one")
    hosts = (host, *more)
    addresses = set()
    try:
        for name in hosts:
            addresses |= {str(entry[4][0]) for entry in socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM)}
        with socket.create_connection((host, urlsplit(url).port or 443), timeout=5):
            pass
    except OSError as error:
        unavailable(f"the index {host} can't be reached: {error.strerror or 'timeout'}")
    return Registry(url, hosts, tuple(sorted(f"{address}/{128 if ':' in address else 32}" for address in addresses)))


def _configured(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


@pytest.fixture(scope="module")
def index() -> Registry:
    pip = (sys.executable, "-m", "pip", "config", "get")
    url = _configured(*pip, "global.index-url") or _configured(*pip, ":env:.index-url") or "https://pypi.org/simple"
    return _registry(url, *(["files.pythonhosted.org"] if urlsplit(url).hostname == "pypi.org" else []))


@pytest.fixture(scope="module")
def registry() -> Registry:
    return _registry(_configured(require("npm"), "config", "get", "registry"))


def _pip(index: Registry, directory: Path) -> list[str]:
    return [
        sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--retries", "1", "--dest", str(directory),
        "--only-binary", ":all:", "idna==3.10",
    ]  # fmt: skip


def _pip_environment(env: dict[str, str], index: Registry) -> dict[str, str]:
    kept = {name: value for name, value in env.items() if not name.startswith("PIP_") or name == "PIP_CERT"}
    # Local wheels and further indexes would answer without any network.
    return {**kept, "PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": index.url}


async def test_pip_downloads_from_an_allowed_index(index: Registry, tmp_path: Path) -> None:
    async with open_firewall({"allow": list(index.hosts)}, directory=tmp_path, private=index.networks) as firewall:
        ran = await run(_pip(index, tmp_path), _pip_environment(firewall.environment(), index), cwd=tmp_path, patience=110)
        assert ran.code == 0, ran.output
    assert (tmp_path / "idna-3.10-py3-none-any.whl").stat().st_size > 50_000
    assert {event.decision for event in firewall.closed()} <= {"relay"}


async def test_pip_is_refused_an_index_that_is_not_allowed(index: Registry, tmp_path: Path) -> None:
    async with open_firewall({"allow": ["other.test.example"]}, directory=tmp_path, private=index.networks) as firewall:
        ran = await run(_pip(index, tmp_path), _pip_environment(firewall.environment(), index), cwd=tmp_path)
        assert ran.code != 0
        assert re.search("403|Forbidden", ran.output), ran.output
        await firewall.next_closed()
    assert not list(tmp_path.glob("*.whl"))
    assert set(firewall.reasons) == {"domain-not-allowed"}


def _npm(directory: Path) -> list[str]:
    return [require("npm"), "pack", "--silent", "--fetch-retries=0", f"--cache={directory / 'cache'}", "undici@6.29.1"]


async def test_npm_packs_from_an_allowed_registry(registry: Registry, tmp_path: Path) -> None:
    async with open_firewall({"allow": list(registry.hosts)}, directory=tmp_path, private=registry.networks) as firewall:
        ran = await run(_npm(tmp_path), firewall.environment(), cwd=tmp_path, patience=110)
        assert ran.code == 0, ran.output
    assert (tmp_path / "undici-6.29.1.tgz").stat().st_size > 50_000


async def test_npm_is_refused_a_registry_that_is_not_allowed(registry: Registry, tmp_path: Path) -> None:
    async with open_firewall({"allow": ["other.test.example"]}, directory=tmp_path, private=registry.networks) as firewall:
        argv = [word for word in _npm(tmp_path) if word != "--silent"]
        ran = await run(argv, firewall.environment(), cwd=tmp_path)
        assert ran.code != 0
        assert re.search("403|Forbidden", ran.output), ran.output
        await firewall.next_closed()
    assert not list(tmp_path.glob("*.tgz"))
