"""``sbxproxy serve``: one sandbox on explicit listeners, for containers and other machines' HTTPS_PROXY."""

from __future__ import annotations

__all__ = ["serve"]

import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import click
import trio

from sbxproxy.address import IPNetwork, parse_address, parse_network
from sbxproxy.cli.options import Configuration, configure, operator_options, policy_options
from sbxproxy.cli.runtime import runtime_directory
from sbxproxy.cli.session import Session, run_trio
from sbxproxy.errors import ConfigurationError
from sbxproxy.fronts import ListenerAuth
from sbxproxy.net import describe, open_unix_listener

FAILURE = 1


@click.command()
@policy_options
@operator_options
@click.option(
    "--listen", multiple=True, required=True, metavar="ADDRESS:PORT|unix:PATH", help="Where to listen; may be repeated."
)
@click.option("--name", default="serve", show_default=True, help="The sandbox's name, in events and in its CA certificate.")
@click.option("--listener-auth", metavar="USER=SOURCE", help="Ask for this user; its password is env:VARIABLE or file:PATH.")
@click.option(
    "--proxy-protocol",
    multiple=True,
    metavar="CIDR|unix",
    help="Take PROXY v2 headers, from these peers only, instead of CONNECT and SOCKS; unix: whoever may connect to a unix:PATH.",
)
@click.option("--ca-out", type=click.Path(path_type=Path), metavar="FILE", help="Write the CA's certificate here.")
@click.option("--trust-dir", type=click.Path(path_type=Path), metavar="DIR", help="Write ca.pem and bundle.pem here.")
@click.option(
    "--env-out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the client's variables here: KEY=VALUE lines, or a script to source if FILE ends in .sh.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    metavar="N",
    help="Serve with N processes, for as many processors.",
)
@click.option("--ready-fd", type=int, metavar="N", help="Write where it listens to descriptor N, a line each, and close it.")
@click.option("--grace", type=float, default=5.0, show_default=True, metavar="SECONDS", help="Time for open flows after SIGTERM.")
@click.pass_context
def serve(ctx: click.Context, /, listen: tuple[str, ...], **options: Any) -> None:
    """Serve one sandbox until SIGTERM or SIGINT, then drain and end with 0.

    A line on standard error says when it listens, and where. SIGHUP reads the policy file again, as does every change of it.
    """
    configuration = configure(ctx)
    run_trio(lambda: _serve(configuration, listen, options), failure=FAILURE)


async def _serve(configuration: Configuration, listen: tuple[str, ...], options: dict[str, Any]) -> None:
    auth = _auth(options["listener_auth"])
    trusted = _trusted(options["proxy_protocol"])
    if options["workers"] > 1:
        await _serve_by_workers(configuration, listen, auth, trusted, options)
        return
    async with Session.open(configuration, options["name"]) as session:
        listeners = [listener for where in listen for listener in await _open(where)]
        places = [describe(listener) for listener in listeners]
        sandbox = session.sandbox

        async def accept(*, task_status: trio.TaskStatus[None]) -> None:
            await sandbox.serve(listeners, auth=auth, trusted_proxies=trusted, task_status=task_status)

        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            await session.nursery.start(accept)
            await _attend(session, signals, listeners, places, auth, options)
        await session.proxy.drain(grace=options["grace"])


async def _serve_by_workers(
    configuration: Configuration, listen: tuple[str, ...], auth: ListenerAuth | None, trusted: list[Any], options: dict[str, Any]
) -> None:
    from sbxproxy.cli.crew import open_crew

    kind, _, variable = (options["listener_auth"] or "").partition("=")[2].partition(":")
    hidden = [variable] if kind == "env" else []
    count, name = options["workers"], options["name"]
    async with open_crew(configuration, name, count=count, listen=listen, auth=auth, trusted=trusted, hidden=hidden) as crew:
        session, sandbox = crew
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            await _attend(session, signals, list(sandbox.endpoints), list(sandbox.endpoints), auth, options)
        await session.proxy.drain(grace=options["grace"])


async def _attend(
    session: Session,
    signals: AsyncIterator[int],
    listeners: list[Any],
    places: list[str],
    auth: ListenerAuth | None,
    options: dict[str, Any],
) -> None:
    """Tell all who want to know that it serves, and stay until a signal says to end."""
    await session.serve_control(runtime_directory())
    _write_files(session, listeners, places, auth, options)
    for place in places:
        print(f"sbxproxy: listening on {place}", file=sys.stderr, flush=True)
    _announce(options["ready_fd"], places)
    async for number in signals:
        if number != signal.SIGHUP:
            break
        if session.on_hangup is not None:
            await session.on_hangup()


async def _open(where: str) -> list[Any]:
    if where.startswith("unix:"):
        return [open_unix_listener(where.removeprefix("unix:"))]
    host, _, port = where.rpartition(":")
    address = parse_address(host.removeprefix("[").removesuffix("]"))
    if address is None or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise ConfigurationError(f"--listen: {where!r}: write ADDRESS:PORT, [IPv6]:PORT or unix:PATH")
    try:
        return list(await trio.open_tcp_listeners(int(port), host=str(address)))
    except OSError as error:
        raise ConfigurationError(f"--listen: can't listen on {where}: {error.strerror or error}") from None


def _auth(text: str | None) -> ListenerAuth | None:
    if text is None:
        return None
    user, equals, source = text.partition("=")
    kind, _, where = source.partition(":")
    if not (user and equals and where) or kind not in {"env", "file"}:
        raise ConfigurationError("--listener-auth: write USER=env:VARIABLE or USER=file:PATH; never the password itself")
    if kind == "env":
        password = os.environ.get(where)
        if not password:
            raise ConfigurationError(f"--listener-auth: environment variable {where} is not set")
    else:
        try:
            password = Path(where).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"--listener-auth: can't read {where}: {type(error).__name__}") from None
    return ListenerAuth(user=user, password=password)


def _trusted(texts: tuple[str, ...]) -> list[IPNetwork | Literal["unix"]]:
    try:
        return ["unix" if text == "unix" else parse_network(text) for text in texts]
    except ValueError as error:
        raise ConfigurationError(f"--proxy-protocol: {error}") from None


def _write_files(
    session: Session, listeners: list[Any], places: list[str], auth: ListenerAuth | None, options: dict[str, Any]
) -> None:
    sandbox = session.sandbox
    try:
        if options["ca_out"] is not None:
            options["ca_out"].write_bytes(sandbox.certificate_pem)
        if options["trust_dir"] is not None:
            options["trust_dir"].mkdir(parents=True, exist_ok=True)
            sandbox.write_trust(options["trust_dir"])
        if options["env_out"] is not None:
            tcp = next(
                (listener for listener, place in zip(listeners, places, strict=True) if not place.startswith("unix:")), None
            )
            if tcp is None:
                raise ConfigurationError("--env-out: proxy variables can't name a Unix socket; add a TCP --listen")
            variables = sandbox.environment(proxy=tcp, auth=auth, directory=options["trust_dir"])
            _write_private(options["env_out"], _variables(variables, script=options["env_out"].suffix == ".sh"))
    except OSError as error:
        raise ConfigurationError(f"can't write {error.filename}: {error.strerror}") from None


def _variables(variables: dict[str, str | None], *, script: bool) -> str:
    if not script:
        return "".join(f"{name}={value}\n" for name, value in variables.items() if value is not None)
    lines = [f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join(lines) + "\n"


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read: it holds the listener's password."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.fchmod(descriptor, 0o600)  # it may have been there, with another mode
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def _announce(descriptor: int | None, places: list[str]) -> None:
    if descriptor is None:
        return
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as ready:
            ready.write("".join(f"{place}\n" for place in places))
    except OSError as error:
        raise ConfigurationError(f"--ready-fd: can't write to descriptor {descriptor}: {error.strerror}") from None
