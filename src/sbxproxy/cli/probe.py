"""``sbxproxy probe``: what this machine lets ``run`` do."""

from __future__ import annotations

__all__ = ["probe"]

import sys

import click
import trio


@click.command()
def probe() -> None:
    """Try to confine a command as `run` does, a redirected connection included, and tell how that went.

    Exit code 0 if it works, 1 if not: then with the step that failed, why, and what would help.
    """
    from sbxproxy.capture.probing import probe as try_it

    found = trio.run(try_it)
    if found.ok:
        click.echo("run can confine commands on this machine: namespaces, redirection and system call filter work")
        sys.exit(0)
    click.echo(f"run can't confine commands on this machine: {found.step}: {found.reason}")
    if found.remedy:
        click.echo(f"what would help: {found.remedy}")
    click.echo("until then `run --capture=env` sets proxy variables only, and holds back no program that ignores them")
    sys.exit(1)
