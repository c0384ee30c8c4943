"""Commands that only look: ``explain``, ``lint``, ``schema``, ``ca``, ``plugins``, ``version``."""

from __future__ import annotations

__all__ = ["ca", "explain", "lint", "plugins", "schema", "version"]

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import click

from sbxproxy import __version__
from sbxproxy.cli.options import PolicySource, operator_options, settings
from sbxproxy.policy.model import Policy

DENIED = 3


def _read(file: str) -> Policy:
    return (PolicySource(None, text=sys.stdin.read()) if file == "-" else PolicySource(Path(file))).read()


@click.command()
@operator_options
@click.argument("file", metavar="FILE")
@click.argument("target", metavar="TARGET")
@click.option("--method", default="GET", show_default=True, help="The request's method, for a URL's rules.")
@click.option("--path", "request_path", metavar="PATH", help="The request's path and query; by default the URL's.")
@click.option("--header", multiple=True, metavar="'NAME: VALUE'", help="A header of the request.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def explain(
    ctx: click.Context,
    /,
    file: str,
    target: str,
    method: str,
    request_path: str | None,
    header: tuple[str, ...],
    *,
    as_json: bool,
    **_: Any,
) -> None:
    """Tell what the policy in FILE decides on TARGET, and why: by the code that decides on live traffic.

    TARGET is host:port, [IPv6]:port, or a URL (https, http, postgres). Nothing is looked up: a name's addresses are those given with
    --resolve, or else assumed to be public. Exit code 0 if allowed, 3 if denied, 2 for wrong use.
    """
    from sbxproxy.address import PrefixTable
    from sbxproxy.policy import Boundary, Deny, HttpRequest, parse_target
    from sbxproxy.policy import explain as explain_policy

    policy = _read(file)
    operator = settings(ctx.params)
    boundary = Boundary(never=PrefixTable(operator.never), private=PrefixTable(operator.private_networks))
    try:
        wanted = parse_target(target)
    except ValueError as error:
        raise click.UsageError(f"TARGET: {error}") from None
    headers = [tuple(part.strip().encode() for part in text.split(":", 1)) for text in header]
    if any(len(pair) != 2 for pair in headers):
        raise click.UsageError("--header: write 'Name: value'")
    request = _request(HttpRequest, wanted, method, request_path, headers)
    addresses = operator.resolve.get(wanted.host) if isinstance(wanted.host, str) else None
    answer = explain_policy(policy, wanted, boundary, request=request, addresses=tuple(addresses) if addresses else None)
    denied = isinstance(answer.decision, Deny)
    if as_json:
        click.echo(json.dumps(_plain(answer), indent=2))
    else:
        _print_explanation(target, answer, denied=denied)
    sys.exit(DENIED if denied else 0)


def _request(kind: Any, wanted: Any, method: str, path: str | None, headers: list[Any]) -> Any:
    target = path or getattr(wanted, "path", None) or "/"
    return kind(method=method, target=target, headers=tuple(headers))


def _plain(answer: Any) -> dict[str, Any]:
    decision = answer.decision
    values: dict[str, Any] = {"decision": type(decision).__name__.lower()}
    for field in dataclasses.fields(answer):
        if field.name != "decision":
            value = getattr(answer, field.name)
            values[field.name] = (
                value
                if isinstance(value, bool | int | type(None))
                else list(map(str, value))
                if isinstance(value, tuple | list)
                else str(value)
            )
    for name in ("detail", "remedy", "matched"):
        if hasattr(decision, name):
            values[name] = getattr(decision, name)
    return values


def _print_explanation(target: str, answer: Any, *, denied: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    # Not markup: to rich [fe80::1] is a tag.
    verdict = Text("✗ denied", "bold red") if denied else Text("✓ allowed", "bold green")
    console.print(verdict.append(f" {target}", "default not bold"))
    table = Table(show_header=False, box=None, padding=(0, 1))
    for name, value in _plain(answer).items():
        if value not in (None, [], ""):
            table.add_row(name, Text("; ".join(value) if isinstance(value, list) else str(value)))
    console.print(table)


@click.command()
@click.argument("file", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def lint(file: str, *, as_json: bool) -> None:
    """Look in FILE for what a policy opens, or fails to do, without meaning to.

    Exit code 0 if nothing is found but notes, 1 if there is a warning, 2 if the policy is invalid.
    """
    from sbxproxy.policy import Severity
    from sbxproxy.policy import lint as lint_policy

    findings = lint_policy(_read(file))
    if as_json:
        click.echo(json.dumps([finding.as_dict() for finding in findings], indent=2))
    elif not findings:
        click.echo("nothing found")
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table("finding", "where", "what")
        for finding in findings:
            table.add_row(finding.id, Text(finding.place), Text(finding.message))
        Console(highlight=False).print(table)
    sys.exit(1 if any(finding.severity is Severity.WARNING for finding in findings) else 0)


@click.command()
def schema() -> None:
    """Print the JSON Schema of policies, for editors: set it as "$schema"-aware editors ask."""
    from sbxproxy.policy import json_schema

    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="[FILE]")
def ca(file: Path | None) -> None:
    """Describe the CA certificate in FILE, or list the variables that make clients trust a sandbox's CA.

    Each sandbox makes a CA of its own, in memory, when it starts; its key is never written. `sbxproxy serve --ca-out FILE` writes the
    certificate.
    """
    if file is not None:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        try:
            certificate = x509.load_pem_x509_certificate(file.read_bytes())
        except ValueError:
            raise click.UsageError(f"{file} holds no PEM certificate") from None
        click.echo(f"subject      {certificate.subject.rfc4514_string()}")
        click.echo(f"valid until  {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
        click.echo(f"sha256       {certificate.fingerprint(hashes.SHA256()).hex(':')}")
        return
    from sbxproxy.tls.trust import trust_environment

    for name, value in trust_environment(bundle=Path("BUNDLE.pem"), added=Path("CA.pem")).items():
        click.echo(f"unset {name}" if value is None else f"{name}={value}")


@click.command()
def plugins() -> None:
    """List installed plugins; --plugin NAME loads one."""
    from sbxproxy.plugins import installed

    found = installed()
    for plugin in found:
        click.echo(f"{plugin.slot:11} {plugin.name:20} {plugin.distribution} {plugin.version}  {plugin.value}")
    if not found:
        click.echo("none installed")


@click.command()
def version() -> None:
    """Print the version."""
    click.echo(f"sbxproxy {__version__}")
