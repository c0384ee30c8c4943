"""A session whose sandbox is served by several workers: for ``serve --workers``."""

from __future__ import annotations

__all__ = ["open_crew"]

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import trio

from sbxproxy.cli.options import Configuration
from sbxproxy.cli.session import Session, configuration_secret, observing
from sbxproxy.fronts import ListenerAuth
from sbxproxy.loading import collect_seldom
from sbxproxy.workers import SharedSandbox, Workers


@asynccontextmanager
async def open_crew(
    configuration: Configuration,
    name: str,
    *,
    count: int,
    listen: Sequence[str],
    auth: ListenerAuth | None,
    trusted: Sequence[Any],
    hidden: Sequence[str],
) -> AsyncIterator[tuple[Session, SharedSandbox]]:
    """Start the workers, and let them serve; everything of it is stopped at the end of the block.

    Args:
        configuration: what the options come to.
        name: the sandbox's.
        count: how many workers.
        listen: where.
        auth: user name and password for the listeners.
        trusted: proxies, as in ``Sandbox.serve``.
        hidden: environment variables that workers don't get, besides those that hold secrets.

    Raises:
        SbxproxyError: the configuration doesn't hold.
    """
    kept = {key: value for key, value in os.environ.items() if key not in {*configuration.hidden, *hidden}}
    with observing(configuration) as (log, observers):
        workers = Workers(
            configuration.settings, count=count, plugins=configuration.plugins, observers=observers, environment=kept
        )
        reading = configuration.source.examine()
        for source_name in reading.policy.secrets:
            # A secret that can't be had is an error now rather than at the first request.
            await configuration_secret(configuration, source_name)
        async with trio.open_nursery() as nursery:
            await nursery.start(workers.run)
            collect_seldom()
            sandbox = await workers.create_sandbox(
                name,
                policy=reading.policy,
                listen=listen,
                secrets=configuration.secrets,
                auth=auth,
                trusted_proxies=trusted,
            )
            # What a session does with its proxy and its sandbox (drain it, show and change its policy) it does with these alike.
            session = Session(configuration, cast("Any", workers), cast("Any", sandbox), log, nursery)
            nursery.start_soon(session.watch, reading.state)
            yield session, sandbox
            nursery.cancel_scope.cancel(reason="the session is over")
