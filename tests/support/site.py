"""What clients fetch from an origin: a line of text, a git repository, a wheel, a package from an npm registry, a list of crates."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import subprocess
import tarfile
import zipfile
from pathlib import Path

import trio

from support.origin import HELLO, Reply, Responder, Seen
from support.programs import require

WHEEL = "toy-1.0-py3-none-any.whl"
TARBALL = "toy-1.0.0.tgz"


def wheel() -> bytes:
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


def tarball() -> bytes:
    content = json.dumps({"name": "toy", "version": "1.0.0"}).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("package/package.json")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0)


def _packument(base: str) -> dict[str, object]:
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(tarball()).digest()).decode()
    dist = {"tarball": f"{base}/npm/toy/-/{TARBALL}", "integrity": integrity}
    version = {"name": "toy", "version": "1.0.0", "dist": dist}
    return {"name": "toy", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}


def _json(value: object) -> Reply:
    return Reply(json.dumps(value).encode(), headers=(("Content-Type", "application/json"),))


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


def site(root: Path) -> Responder:
    """Serve all of it; the repositories are in *root*."""

    async def respond(seen: Seen) -> Reply:
        match seen.target.partition("?")[0]:
            case path if path.startswith("/repo.git"):
                return await _git_backend(root, seen)
            case "/simple/toy/":
                return Reply(f'<a href="/files/{WHEEL}">{WHEEL}</a>'.encode(), headers=(("Content-Type", "text/html"),))
            case path if path == f"/files/{WHEEL}":
                return Reply(wheel())
            case "/crates/config.json":
                return _json({"dl": f"https://{seen.one('host')}/crates", "api": f"https://{seen.one('host')}"})
            case "/api/v1/crates":
                return _json({"crates": [{"name": "toy", "max_version": "1.0.0", "description": None}], "meta": {"total": 1}})
            case "/npm/toy":
                return _json(_packument(f"https://{seen.one('host')}"))
            case path if path == f"/npm/toy/-/{TARBALL}":
                return Reply(tarball())
        return Reply()

    return respond


def make_repository(root: Path) -> Path:
    """Make one with one commit below *root*; returns *root*."""
    git = [require("git"), "-c", "user.name=test", "-c", "user.email=test@test.example", "-c", "init.defaultBranch=main"]
    work = root / "work"
    for command in (["init", "-q", str(work)], ["-C", str(work), "add", "."], ["-C", str(work), "commit", "-qm", "first"]):
        if command[-1] == ".":
            (work / "README").write_bytes(HELLO)
        subprocess.run([*git, *command], check=True)
    subprocess.run([*git, "clone", "-q", "--bare", str(work), str(root / "repo.git")], check=True)
    return root
