"""``run --capture=env``: proxy and trust variables, for programs that heed them. One that doesn't is not held back."""

from __future__ import annotations

__all__ = ["persuade"]

import secrets
from collections.abc import Mapping, Sequence
from functools import partial

import trio

from sbxproxy.cli.child import attend, receive_signals
from sbxproxy.cli.failure import NOT_HELD, OWN_FAILURE
from sbxproxy.cli.options import Configuration, changed
from sbxproxy.cli.session import Session, run_trio
from sbxproxy.cli.terminal import own_terminal
from sbxproxy.cli.unconfined import Unconfined
from sbxproxy.fronts.ask import ListenerAuth


def persuade(configuration: Configuration, name: str, command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run *command* with variables that lead it to the proxy; returns its exit code."""
    return run_trio(lambda: _run(configuration, name, command, environment), failure=OWN_FAILURE)


async def _run(configuration: Configuration, name: str, command: Sequence[str], environment: Mapping[str, str]) -> int:
    async with Session.open(configuration, name) as session:
        session.log.say(f"--capture=env {NOT_HELD}", "yellow")
        # A loopback port that only this command has the password for.
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        auth = ListenerAuth(user="sandbox", password=secrets.token_urlsafe(24))
        await session.nursery.start(partial(session.sandbox.serve, listeners, auth=auth))
        changes = session.sandbox.environment(proxy=listeners[0], auth=auth)
        terminal = own_terminal()
        with receive_signals(session.on_hangup) as signals:
            async with Unconfined.open(command, changed(environment, changes), terminal) as child:
                if isinstance(child, int):
                    return child
                return await attend(child, signals, terminal=terminal, on_hangup=session.on_hangup)
