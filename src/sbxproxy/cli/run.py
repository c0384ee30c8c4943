"""``sbxproxy run``: a command behind a policy."""

from __future__ import annotations

__all__ = ["run"]

import os
import pwd
import secrets
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import click
import trio

from sbxproxy.capture.confined import launch
from sbxproxy.capture.masks import KEPT, UNSET, default_masks
from sbxproxy.capture.plan import Plan, User
from sbxproxy.capture.unavailable import CaptureUnavailable
from sbxproxy.cli.child import attend, receive_signals
from sbxproxy.cli.failure import Failure
from sbxproxy.cli.options import Configuration, configure, operator_options, policy_options
from sbxproxy.cli.session import Session, run_trio
from sbxproxy.cli.terminal import own_terminal, release
from sbxproxy.cli.unconfined import Unconfined
from sbxproxy.fronts import ListenerAuth

OWN_FAILURE = 125

NOT_HELD = (
    "holds nobody back: a program that ignores proxy variables, opens sockets of its own, asks another resolver or "
    "speaks UDP is not stopped, and it can see and signal sbxproxy itself"
)


class Capture(Protocol):
    """How the command's traffic gets to the proxy."""

    async def run(self, session: Session, environment: dict[str, str]) -> int:
        """Run the command with *environment* and what it needs besides; returns its exit code."""
        ...


class Namespaces:
    """By namespaces of its own, out of which there is no way but the proxy."""

    def __init__(self, command: Sequence[str], user: User | None, masks: Sequence[Path]) -> None:
        self._command = command
        self._user = user
        self._masks = masks

    async def run(self, session: Session, environment: dict[str, str]) -> int:
        """Confine the command, and be its only way out."""
        control = await session.open_control()
        sandbox = session.sandbox
        terminal = own_terminal()
        plan = Plan(
            argv=self._command,
            environment=_changed(environment, {**dict.fromkeys(UNSET), **sandbox.environment()}),
            user=self._user,
            masks=[*default_masks(environment), *self._masks, control],
            keep=KEPT,
            binds=sandbox.mounts(),
            foreground=terminal is not None,
        )
        try:
            async with await launch(plan) as confined:
                await session.nursery.start(sandbox.serve_captured, confined)
                try:
                    with receive_signals(session.on_hangup) as signals:
                        await confined.go()
                        return await attend(confined, signals, terminal=terminal, on_hangup=session.on_hangup)
                finally:
                    if terminal is not None:
                        release(terminal, confined.pid)
        except CaptureUnavailable as error:
            raise Failure(
                f"{error}\nnothing was run. `sbxproxy probe` tells more; --capture=env runs it all the same, but {NOT_HELD}",
                OWN_FAILURE,
            ) from None


class Variables:
    """By proxy and trust variables: for programs that heed them. One that doesn't is not held back."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command

    async def run(self, session: Session, environment: dict[str, str]) -> int:
        """Listen on a loopback port that only this command has the password for."""
        session.log.say(f"--capture=env {NOT_HELD}", "yellow")
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        auth = ListenerAuth(user="sandbox", password=secrets.token_urlsafe(24))
        await session.nursery.start(partial(session.sandbox.serve, listeners, auth=auth))
        changes = session.sandbox.environment(proxy=listeners[0], auth=auth)
        terminal = own_terminal()
        with receive_signals(session.on_hangup) as signals:
            async with Unconfined.open(self._command, _changed(environment, changes), terminal) as command:
                if isinstance(command, int):
                    return command
                return await attend(command, signals, terminal=terminal, on_hangup=session.on_hangup)


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@policy_options
@operator_options
@click.option(
    "--capture",
    type=click.Choice(["namespaces", "env"]),
    default="namespaces",
    show_default=True,
    help="How the command is kept to the proxy: namespaces leaves it no other way out; env sets proxy variables and hopes.",
)
@click.option("--user", metavar="NAME|UID[:GID]", help="Run the command as this user; for root.")
@click.option("--mask", multiple=True, metavar="PATH", help="Hide this file or directory from the command too.")
@click.option("--name", default="run", show_default=True, help="The sandbox's name, in events and in its CA certificate.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(
    ctx: click.Context,
    /,
    capture: str,
    user: str | None,
    mask: tuple[str, ...],
    name: str,
    command: tuple[str, ...],
    **_options: object,
) -> None:
    """Run COMMAND behind a policy.

    Ends as COMMAND does: with its exit code, or 128 + N after signal N; 126 if it can't be executed, 127 if it isn't found, 125 if
    sbxproxy itself failed. Signals are passed on; SIGHUP reads the policy file again, as does every change of it.
    """
    if not command:
        raise click.UsageError("no command; write: sbxproxy run [OPTIONS] -- COMMAND [ARGUMENTS]")
    configuration = configure(ctx)
    way: Capture
    if capture == "env":
        if user is not None or mask:
            raise click.UsageError("--user and --mask need --capture=namespaces")
        way = Variables(command)
    else:
        way = Namespaces(command, None if user is None else _user(user), [Path(path).absolute() for path in mask])
    code = run_trio(lambda: _run(configuration, way, name), failure=OWN_FAILURE)
    sys.exit(code)


async def _run(configuration: Configuration, way: Capture, name: str) -> int:
    async with Session.open(configuration, name) as session:
        environment = {key: value for key, value in os.environ.items() if key not in configuration.hidden}
        return await way.run(session, environment)


def _changed(environment: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    merged = {**environment, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def _user(text: str) -> User:
    """Read whom to run as: a user's name with all of its groups, or numbers.

    Raises:
        click.UsageError: there is no such user, or we aren't root.
    """
    if os.geteuid() != 0:
        raise click.UsageError("--user: only root can run a command as another user")
    name, _, group = text.partition(":")
    try:
        if not name.isdecimal():
            entry = pwd.getpwnam(name)
            gid = int(group) if group else entry.pw_gid
            return User(uid=entry.pw_uid, gid=gid, groups=os.getgrouplist(name, gid))
        return User(uid=int(name), gid=int(group or name))
    except (KeyError, ValueError):
        raise click.UsageError(f"--user: no user is named {name!r}; write NAME, UID or UID:GID") from None
