"""``sbxproxy run``: a command behind a policy."""

from __future__ import annotations

__all__ = ["run"]

import os
import secrets
import sys
from collections.abc import Mapping
from typing import Protocol

import click
import trio

from sbxproxy.cli.child import run_child
from sbxproxy.cli.options import Configuration, configure, operator_options, policy_options
from sbxproxy.cli.session import Session, run_trio
from sbxproxy.fronts import ListenerAuth

OWN_FAILURE = 125


class Capture(Protocol):
    """How the command's traffic gets to the proxy."""

    async def start(self, session: Session) -> Mapping[str, str | None]:
        """Begin to serve, and return the variables that the command needs; ``None`` removes one."""
        ...


class EnvironmentCapture:
    """By proxy and trust variables: for programs that heed them. One that doesn't is not held back."""

    async def start(self, session: Session) -> Mapping[str, str | None]:
        """Listen on a loopback port that only this command has the password for."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        auth = ListenerAuth(user="sandbox", password=secrets.token_urlsafe(24))

        async def serve(*, task_status: trio.TaskStatus[None]) -> None:
            await session.sandbox.serve(listeners, auth=auth, task_status=task_status)

        await session.nursery.start(serve)
        return session.sandbox.environment(proxy=listeners[0], auth=auth)


CAPTURES = {"env": EnvironmentCapture}


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@policy_options
@operator_options
@click.option(
    "--capture",
    type=click.Choice(sorted(CAPTURES)),
    default="env",
    show_default=True,
    help="How the command's connections are captured: env sets proxy and trust variables.",
)
@click.option("--name", default="run", show_default=True, help="The sandbox's name, in events and in its CA certificate.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(ctx: click.Context, /, capture: str, name: str, command: tuple[str, ...], **_options: object) -> None:
    """Run COMMAND behind a policy.

    Ends as COMMAND does: with its exit code, or 128 + N after signal N; 126 if it can't be executed, 127 if it isn't found, 125 if
    sbxproxy itself failed. Signals are passed on; SIGHUP reads the policy file again, as does every change of it.
    """
    if not command:
        raise click.UsageError("no command; write: sbxproxy run [OPTIONS] -- COMMAND [ARGUMENTS]")
    configuration = configure(ctx)
    code = run_trio(lambda: _run(configuration, CAPTURES[capture](), name, command), failure=OWN_FAILURE)
    sys.exit(code)


async def _run(configuration: Configuration, capture: Capture, name: str, command: tuple[str, ...]) -> int:
    async with Session.open(configuration, name) as session:
        changes = await capture.start(session)
        environment = {key: value for key, value in os.environ.items() if key not in configuration.hidden}
        for key, value in changes.items():
            if value is None:
                environment.pop(key, None)
            else:
                environment[key] = value
        on_hangup = session.reload if configuration.source.path is not None else None
        return await run_child(command, environment, on_hangup=on_hangup)
