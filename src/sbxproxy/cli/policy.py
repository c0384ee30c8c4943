"""``sbxproxy policy``: look at the policy of a running sandbox, or give it another one, from another terminal."""

from __future__ import annotations

__all__ = ["policy"]

import json
import sys
from pathlib import Path

import click

from sbxproxy.cli.control import ask, find, running
from sbxproxy.cli.options import NAMED_POLICIES, read_policy_text
from sbxproxy.cli.runtime import runtime_directory


@click.group()
def policy() -> None:
    """Look at the policy of a running `sbxproxy run` or `serve` of yours, or change it.

    NAME is its --name.
    """


@policy.command("list")
def list_() -> None:
    """List the sandboxes that are running, a name a line."""
    for name in running(runtime_directory()):
        click.echo(name)


@policy.command()
@click.argument("name")
def show(name: str) -> None:
    """Print the policy in force, without the values of headers."""
    answer = ask(find(runtime_directory(), name), {"do": "show"})
    click.echo(json.dumps(answer["policy"], indent=2))


@policy.command("set")
@click.argument("name")
@click.argument("file")
def set_(name: str, file: str) -> None:
    """Put the policy in FILE in force; - is standard input, allow-all and deny-all are what they say.

    What it no longer allows is cut before this returns. An invalid policy changes nothing; exit code 2.
    """
    answer = ask(find(runtime_directory(), name), {"do": "set", "policy": _text(file)})
    click.echo(f"{name}: {answer['mode']}; {answer['cut']} flows cut, {answer['kept']} kept")


@policy.command()
@click.argument("name")
def lint(name: str) -> None:
    """Look for what the policy in force opens without meaning to; exit code 1 if there is a warning."""
    findings = ask(find(runtime_directory(), name), {"do": "lint"})["findings"]
    for finding in findings:
        click.echo(f"{finding['severity']}: {finding['id']}: {finding['place']}: {finding['message']}")
    if not findings:
        click.echo("nothing found")
    sys.exit(1 if any(finding["severity"] == "warning" for finding in findings) else 0)


def _text(file: str) -> str:
    if file == "-":
        return sys.stdin.read()
    if file in NAMED_POLICIES:
        return json.dumps(file)
    return read_policy_text(Path(file))
