"""``sbxproxy demo``: the whole story on loopback, offline, with real clients, and every claim checked."""

from __future__ import annotations

__all__ = ["demo"]

import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import trio
from rich.console import Console
from rich.table import Table

from sbxproxy import __version__
from sbxproxy.cli.demo_database import Database, find_programs
from sbxproxy.cli.origin import API, DATABASE, FILES, OTHER, Origin
from sbxproxy.events import Event, FlowClosed
from sbxproxy.policy import Policy
from sbxproxy.proxy import Proxy
from sbxproxy.sandbox import Sandbox
from sbxproxy.settings import Settings

TOKEN = "demo-token-" + os.urandom(8).hex()
"""A credential made up for this run: finding it anywhere but at the origin is a failure."""

_FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"

RULES: dict[str, object] = {
    "allow": {API: [{"transform": [{"headers": {"authorization": "Bearer ${secret:demo}"}}]}], FILES: []},
}


@dataclass(slots=True)
class Story:
    """The steps and how they went."""

    steps: list[tuple[str, str, bool]] = field(default_factory=list)

    def step(self, claim: str, seen: str, *, holds: bool) -> None:
        """Note a claim and what was seen."""
        self.steps.append((claim, seen, holds))

    @property
    def holds(self) -> bool:
        """Every claim held."""
        return all(holds for _, _, holds in self.steps)


@click.command()
def demo() -> None:
    """Run the whole story offline, on loopback, with real clients; exit code 1 if any claim doesn't hold."""
    gc.enable()
    story = trio.run(_tell)
    console = Console(highlight=False)
    table = Table(title=f"sbxproxy {__version__}: what happened", title_justify="left")
    table.add_column("")
    table.add_column("step")
    table.add_column("seen")
    for claim, seen, holds in story.steps:
        table.add_row("[green]✓[/]" if holds else "[red]✗[/]", claim, seen)
    console.print(table)
    if not story.holds:
        console.print("[bold red]a claim does not hold[/]")
        sys.exit(1)
    console.print(
        "Now yours: [bold]sbxproxy run --allow pypi.org --allow files.pythonhosted.org -- pip download trio[/]", soft_wrap=True
    )


async def _tell() -> Story:
    story = Story()
    with trio.fail_after(120), tempfile.TemporaryDirectory() as directory:
        async with _stage(Path(directory)) as (origin, sandbox, environment, events):
            await _act(story, origin, sandbox, environment, events)
            await _ask_database(story, origin, sandbox, environment)
    return story


@asynccontextmanager
async def _stage(directory: Path) -> AsyncIterator[tuple[Origin, Sandbox, dict[str, str], list[Event]]]:
    """An origin with a CA of its own, a proxy that knows it, a sandbox, and the environment of its programs."""
    events: list[Event] = []
    async with trio.open_nursery() as nursery:
        origin = Origin(directory)
        await nursery.start(origin.serve)
        settings = Settings(private_networks=origin.networks, resolve=origin.addresses, extra_upstream_roots=[origin.certificate])
        proxy = Proxy(settings, observers=[events.append])
        await nursery.start(proxy.run)
        sandbox = proxy.create_sandbox("demo", policy="allow-all", secrets={"demo": TOKEN})
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(sandbox.serve, listeners)
        merged = {**os.environ, **sandbox.environment(proxy=listeners[0])}
        environment = {name: value for name, value in merged.items() if value is not None}
        try:
            yield origin, sandbox, environment, events
        finally:
            nursery.cancel_scope.cancel()


async def _act(story: Story, origin: Origin, sandbox: Sandbox, environment: dict[str, str], events: list[Event]) -> None:
    api, files, other = (f"https://{name}:{origin.port}/" for name in (API, FILES, OTHER))

    code, out = await _client(environment, other)
    story.step("allow-all: any host can be reached", _first(out), holds=code == 0 and "hello from" in out)

    rules = Policy.parse(RULES)
    await sandbox.update_policy(rules)
    code, out = await _client(environment, files)
    story.step(f"user-defined: {FILES} is allowed", _first(out), holds=code == 0 and "hello from" in out)

    before = origin.connections
    code, out = await _client(environment, other)
    denied = [event for event in events if isinstance(event, FlowClosed) and event.decision == "deny"]
    reason = denied[-1].reason if denied else "nothing"
    story.step(
        f"user-defined: {OTHER} is denied, and hears nothing",
        f"{reason}; {denied[-1].remedy if denied else ''}",
        holds=code != 0 and reason == "domain-not-allowed" and origin.connections == before,
    )

    code, out = await _python(environment, api)
    seen = origin.seen.get("authorization", "")
    story.step(f"a credential is put in on the way to {API}", _masked(seen), holds=code == 0 and seen == f"Bearer {TOKEN}")
    clean = TOKEN not in out and not any(TOKEN in value for value in environment.values())
    story.step("the program never held it: not in its environment, its request, its response", "absent", holds=clean)

    cut, took, received = await _cut_download(environment, files + "slow", sandbox)
    story.step(
        "a tightened policy cuts what is open", f"cut {took:.2f} s after the update, {received} bytes in", holds=cut and took < 2
    )

    before = origin.connections
    code, out = await _client(environment, api)
    story.step("deny-all: nothing leaves", _last(out), holds=code != 0 and origin.connections == before)
    shown = str(rules.document())
    story.step(
        "reading the policy back shows no secret", "<redacted>", holds="<redacted>" in shown and TOKEN not in shown + str(events)
    )


async def _ask_database(story: Story, origin: Origin, sandbox: Sandbox, environment: dict[str, str]) -> None:
    programs = find_programs()
    if programs is None:
        return
    with tempfile.TemporaryDirectory(prefix="sbxproxy-demo-") as place:
        files = Path(place)
        root = files / "root.pem"
        root.write_bytes(origin.certificate.read_bytes())
        async with Database.open(
            programs, root=root, chain=origin.chain.read_bytes(), directory=files, sandbox=sandbox
        ) as database:
            await sandbox.update_policy({"allow": [DATABASE]})
            code, out = await database.ask(environment, "verify-full")
            story.step(
                f"PostgreSQL: psql reaches {DATABASE} inside TLS", _first(out), holds=code == 0 and "reached, with TLS" in out
            )
            code, out = await database.ask(environment, "disable")
            story.step(
                "PostgreSQL: plain text is refused, in its own words", _said(out), holds=code != 0 and "sslmode=require" in out
            )
            await sandbox.update_policy({"allow": [FILES]})
            code, out = await database.ask(environment, "verify-full")
            story.step(
                f"PostgreSQL: psql is denied once {DATABASE} isn't allowed", _said(out), holds=code != 0 and "reached" not in out
            )


async def _client(environment: dict[str, str], url: str) -> tuple[int, str]:
    """Fetch with curl, or with Python where there is none."""
    if shutil.which("curl") is None:
        return await _python(environment, url)
    return await _output(["curl", "--silent", "--show-error", "--max-time", "10", url], environment)


async def _python(environment: dict[str, str], url: str) -> tuple[int, str]:
    return await _output([sys.executable, "-c", _FETCH, url], environment)


async def _output(argv: list[str], environment: dict[str, str]) -> tuple[int, str]:
    done = await trio.run_process(argv, env=environment, capture_stdout=True, stderr=subprocess.STDOUT, check=False, stdin=b"")
    return done.returncode, done.stdout.decode(errors="replace")


_DOWNLOAD = """
import sys, urllib.request
response = urllib.request.urlopen(sys.argv[1], timeout=60)
size = 0
try:
    while chunk := response.read(1000):
        size += len(chunk)
        print(size, flush=True)
except OSError:
    pass
print("end", size, flush=True)
"""


async def _cut_download(environment: dict[str, str], url: str, sandbox: Sandbox) -> tuple[bool, float, int]:
    """Begin an endless download, tighten the policy, and see when the client notices."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", _DOWNLOAD, url], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        first = await process.stdout.receive_some()
        started = trio.current_time()
        changed = await sandbox.update_policy("deny-all")
        with trio.move_on_after(10) as scope:
            await process.wait()
        took = trio.current_time() - started
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    size = int((first.split() or [b"0"])[0])
    return bool(changed.cut) and not scope.cancelled_caught and size > 0, took, size


def _masked(value: str) -> str:
    return value.replace(TOKEN, TOKEN[:10] + "…") or "nothing"


def _said(text: str) -> str:
    """Return what psql says the server said, without where it tried."""
    return _first(text.partition(" failed: ")[2])


def _first(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "")[:70]


def _last(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")[:70]
