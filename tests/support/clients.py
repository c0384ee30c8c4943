"""Clients as a user's program would run them, told nothing about a proxy or whom to trust: a table of how to run each."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from support.npm import MANIFESTS, install
from support.origin import HELLO
from support.programs import require, unavailable
from support.site import TARBALL, WHEEL, tarball, wheel

SOURCES = Path(__file__).parent / "trust_clients"


@dataclass(frozen=True)
class Tools:
    """What was made for this test run: programs that were compiled, packages that were installed."""

    directory: Path

    def modules(self) -> Path:
        """Node packages: other runtimes and package managers."""
        place = self.directory / "npm"
        if not place.exists():
            place.mkdir()
            install(place, MANIFESTS / "runtimes")
        return place / "node_modules"

    def go(self) -> str:
        built = self.directory / "fetch-go"
        if not built.exists():
            env = {**os.environ, "GOCACHE": str(self.directory / "go-cache"), "GOFLAGS": "-mod=mod", "GOPROXY": "off"}
            command = [require("go"), "build", "-o", str(built), str(SOURCES / "fetch.go")]
            subprocess.run(command, check=True, env=env, cwd=self.directory, timeout=110)
        return str(built)

    def java(self) -> str:
        if not (self.directory / "Fetch.class").exists():
            command = [require("javac"), "-d", str(self.directory), str(SOURCES / "Fetch.java")]
            subprocess.run(command, check=True, timeout=110)
        return str(self.directory)


@dataclass(frozen=True)
class Case:
    """Where to go, in a directory of its own."""

    url: str
    directory: Path
    tools: Tools

    @property
    def host(self) -> str:
        return self.url.removeprefix("https://")

    def script(self, name: str, text: str) -> str:
        path = self.directory / name
        path.write_text(text)
        return str(path)


def _hello(_case: Case, output: str) -> bool:
    return HELLO.decode().strip() in output


@dataclass(frozen=True)
class Client:
    """How one is run, and how to tell that it got what it asked for, besides its exit code."""

    argv: Callable[[Case], Sequence[str]]
    succeeded: Callable[[Case, str], bool] = _hello
    options: Sequence[str] = ()
    """Of ``run --capture=namespaces``: what the client is told nothing about, but its user must ask for."""


def _python(script: str, *modules: str) -> Client:
    def argv(case: Case) -> Sequence[str]:
        for module in modules:
            if find_spec(module) is None:
                unavailable(f"the Python package {module} is not installed")
        return [sys.executable, "-c", script, case.url]

    return Client(argv)


_FETCH = "const answer = await fetch(process.argv[2]); process.stdout.write(await answer.text());"
_HTTPS = """
import https from "node:https";
https.get(process.argv[2], (answer) => answer.pipe(process.stdout)).on("error", (error) => { console.error(error); process.exit(1); });
"""
_DENO = "const answer = await fetch(Deno.args[0]); console.log(await answer.text());"
_URLLIB = "import urllib.request, sys; print(urllib.request.urlopen(sys.argv[1], timeout=30).read().decode())"
_REQUESTS = "import requests, sys; r = requests.get(sys.argv[1], timeout=30); r.raise_for_status(); print(r.text)"
_HTTPX = "import httpx, sys; print(httpx.get(sys.argv[1], timeout=30).raise_for_status().text)"
_AIOHTTP = """
import aiohttp, asyncio, sys
async def main():
    async with aiohttp.ClientSession() as session, session.get(sys.argv[1]) as response:
        response.raise_for_status()
        print(await response.text())
asyncio.run(main())
"""
_LWP = "my $r = LWP::UserAgent->new(env_proxy => 1)->get($ARGV[0]); print $r->decoded_content; exit !$r->is_success"
_PHP = "$text = file_get_contents($argv[1]); echo $text; exit($text === false ? 1 : 0);"


def _openssl(case: Case) -> Sequence[str]:
    # It verifies by itself, but must be told by which name, and that a failure matters.
    name = case.host.partition(":")[0]
    ask = f"printf 'GET / HTTP/1.1\\r\\nHost: {case.host}\\r\\nConnection: close\\r\\n\\r\\n'"
    client = f"{require('openssl')} s_client -connect {case.host} -servername {name} -verify_hostname {name} -verify_return_error"
    return ["sh", "-c", f"{ask} | {client} -quiet -ignore_unexpected_eof"]


def _deno(case: Case) -> Sequence[str]:
    deno = case.tools.modules() / "@deno" / "linux-x64-glibc" / "deno"
    script = case.script("fetch.js", _DENO)
    return ["env", f"DENO_DIR={case.directory / 'deno'}", str(deno), "run", "--no-config", "--allow-net", script, case.url]


def _bun(case: Case) -> Sequence[str]:
    return [str(case.tools.modules() / "@oven" / "bun-linux-x64" / "bin" / "bun"), case.script("fetch.mjs", _FETCH), case.url]


def _pip(case: Case) -> Sequence[str]:
    return [
        sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--retries=0", "--dest", str(case.directory),
        "--index-url", f"{case.url}/simple/", "toy",
    ]  # fmt: skip


def _downloaded(case: Case, _output: str) -> bool:
    return (case.directory / WHEEL).read_bytes() == wheel()


def _uv(case: Case) -> Sequence[str]:
    if find_spec("uv") is None:
        unavailable("the Python package uv is not installed")
    return [
        "env", "UV_HTTP_RETRIES=0", sys.executable, "-m", "uv", "pip", "install", "--no-config", "--no-cache", "--no-deps",
        "--target", str(case.directory / "target"), "--default-index", f"{case.url}/simple/", "toy",
    ]  # fmt: skip


def _npm(case: Case) -> Sequence[str]:
    return [
        require("npm"), "pack", "--fetch-retries=0", f"--cache={case.directory / 'cache'}", f"--registry={case.url}/npm/",
        "--userconfig=/dev/null", "--globalconfig=/dev/null/none", "toy",
    ]  # fmt: skip


def _pnpm(case: Case) -> Sequence[str]:
    pnpm = case.tools.modules() / "@pnpm" / "exe.linux-x64" / "pnpm"
    case.script("package.json", "{}")
    return [
        "env", f"HOME={case.directory}", "pnpm_config_fetch_retries=0", str(pnpm), "add", "--ignore-scripts", f"--registry={case.url}/npm/", "toy",
    ]  # fmt: skip


def _cargo(case: Case) -> Sequence[str]:
    # The index and then the registry's own interface. Old versions take the sparse protocol for experimental.
    return [
        "env", f"CARGO_HOME={case.directory / 'cargo'}", "CARGO_NET_RETRY=0", "RUSTC_BOOTSTRAP=1", require("cargo"), "-Zsparse-registry",
        "search", f"--index=sparse+{case.url}/crates/", "toy",
    ]  # fmt: skip


def _nss(case: Case) -> Sequence[str]:
    # It verifies by the database of the program that it stands for, and must be told which that is.
    require("certutil")
    name, _, port = case.host.partition(":")
    ask = case.script("request", f"GET / HTTP/1.1\r\nHost: {case.host}\r\nConnection: close\r\n\r\n")
    client = f"{require('tstclnt')} -h {name} -p {port} -A {ask} -V tls1.2:tls1.3"
    return ["sh", "-c", f'exec {client} -d "sql:$HOME/.pki/nssdb"']


CLIENTS = {
    "curl": Client(lambda case: [require("curl"), "-sS", "--fail", "--max-time", "30", case.url]),
    "wget": Client(lambda case: [require("wget"), "-nv", "-O", "-", "--tries=1", "--timeout=30", case.url]),
    "git": Client(
        lambda case: [require("git"), "ls-remote", f"{case.url}/repo.git", "refs/heads/main"],
        lambda _case, output: "refs/heads/main" in output,
    ),
    "openssl": Client(_openssl),
    "urllib": _python(_URLLIB),
    "requests": _python(_REQUESTS, "requests"),
    "httpx": _python(_HTTPX, "httpx"),
    "aiohttp": _python(_AIOHTTP, "aiohttp"),
    "pip": Client(_pip, _downloaded),
    "uv": Client(_uv, lambda case, _output: (case.directory / "target" / "toy.py").exists()),
    "cargo": Client(_cargo, lambda _case, output: 'toy = "1.0.0"' in output),
    "node-fetch": Client(lambda case: [require("node"), case.script("fetch.mjs", _FETCH), case.url]),
    "node-https": Client(lambda case: [require("node"), case.script("https.mjs", _HTTPS), case.url]),
    "npm": Client(_npm, lambda case, _output: (case.directory / TARBALL).read_bytes() == tarball()),
    "pnpm": Client(_pnpm, lambda case, _output: (case.directory / "node_modules" / "toy" / "package.json").exists()),
    "deno": Client(_deno),
    "bun": Client(_bun),
    "go": Client(lambda case: [case.tools.go(), case.url]),
    "java": Client(lambda case: [require("java"), "-XX:TieredStopAtLevel=1", "-cp", case.tools.java(), "Fetch", case.url]),
    "ruby": Client(lambda case: [require("ruby"), "-rnet/http", "-e", "print Net::HTTP.get(URI(ARGV[0]))", case.url]),
    "perl": Client(lambda case: [require("perl"), "-MLWP::UserAgent", "-e", _LWP, case.url]),
    "nss": Client(_nss, options=["--nss"]),
    "php": Client(lambda case: [require("php"), "-r", _PHP, case.url]),
}
