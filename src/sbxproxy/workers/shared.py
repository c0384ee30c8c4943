"""A sandbox that several workers serve: its policy, its certificate authority, its secrets and its listening sockets.

The supervisor has all of it, and serves nothing itself. What is asked of the sandbox is asked of every worker.
"""

from __future__ import annotations

__all__ = ["SharedSandbox"]

import base64
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import trio

from sbxproxy.errors import ConfigurationError, PolicyError, PolicyProblem
from sbxproxy.events import Event, FlowClosed, FlowOpened, Observer, PolicyChanged, telling
from sbxproxy.fronts.ask import ListenerAuth
from sbxproxy.policy.model import Policy
from sbxproxy.sandbox.identity import Identity
from sbxproxy.sandbox.references import check_references
from sbxproxy.secrets import Secrets
from sbxproxy.tls.authority import Founding
from sbxproxy.workers.document import written
from sbxproxy.workers.member import FLOWS, PATIENCE
from sbxproxy.workers.places import Place

BYTES_A_SECOND = 500_000
"""Of a policy, that a worker is given time for; it reads several times as many."""

MOST = 128 * 1024 * 1024
"""Bytes of a policy as a document; messages to workers may be twice as long."""

Answers = Sequence[Mapping[str, Any]]

Tell = Callable[["SharedSandbox", Mapping[str, Any], float, Callable[[Answers], None]], Awaitable[None]]


def weigh(policy: Policy) -> tuple[Mapping[str, Any], int]:
    """Return *policy* as a document for workers, and the document's size.

    Raises:
        PolicyError: it is larger than any message to a worker may be.
    """
    document = written(policy)
    size = len(json.dumps(document))
    if size > MOST:
        raise PolicyError(PolicyProblem("", f"larger than workers can be told ({MOST} bytes)", "fewer domains and rules"))
    return document, size


class SharedSandbox:
    """What one sandbox may do, in all workers alike. Made by ``Workers.create_sandbox``.

    Attributes:
        name: as given; in every event.
        endpoints: where it listens: ``127.0.0.1:8080``, ``[::1]:8080``, ``unix:/path``.
        is_served: whether workers may be told to serve it: once all of them know where it listens.
    """

    def __init__(
        self,
        identity: Identity,
        founding: Founding,
        policy: Policy,
        secrets: Secrets,
        places: Sequence[Place],
        *,
        plugins: Mapping[str, Any],
        auth: ListenerAuth | None,
        trusted: Sequence[str],
        observers: Sequence[Observer],
        tell: Tell,
        forget: Callable[[], Awaitable[None]],
    ) -> None:
        """Not called by embedders: see ``Workers.create_sandbox``."""
        self.name = identity.name
        self.endpoints = tuple(place.endpoint for place in places)
        self._identity = identity
        self._founding = founding
        self._policy = policy
        self._written, self._size = weigh(policy)
        self._secrets = secrets
        self._places = tuple(places)
        self._plugins = plugins
        self._auth = auth
        self._trusted = tuple(trusted)
        self._is_observed = bool(observers)
        self._pass_on = telling(observers)
        self._tell = tell
        self._forget = forget
        self._flows: set[int] = set()
        self._updating = trio.Lock()
        self._closed = False
        self.is_served = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else ", ".join(self.endpoints)
        return f"<SharedSandbox {self.name!r} {self.policy.mode.value} {state}>"

    # -- policy

    @property
    def policy(self) -> Policy:
        """The policy in force, or about to be while an update is on its way."""
        return self._policy

    @property
    def flows(self) -> frozenset[int]:
        """The ids of the flows that are open, as far as the workers have told: none where there is no observer."""
        return frozenset(self._flows)

    async def update_policy(self, policy: object) -> PolicyChanged:
        """Put *policy* in force in every worker, and end what it no longer allows.

        It has happened when this returns: each worker has said that the policy is in force and the flows are cut, or was killed
        because it didn't say so in time, and another starts in its place with the new policy. Cancelled, this no longer waits, but
        the update goes on, and observers are told.

        Args:
            policy: a policy document (see docs/policy.md) or a ``Policy``.

        Returns:
            What changed in all workers together: the same event that observers are told. Flows of a worker that was killed are in
            neither number.

        Raises:
            PolicyError: it is invalid; the old policy is still in force, everywhere.
            RuntimeError: the sandbox is closed, or the workers have ended.
        """
        self._require_open()
        compiled = policy if isinstance(policy, Policy) else await trio.to_thread.run_sync(Policy.parse, policy)
        check_references(compiled, self._secrets, self._plugins)
        async with self._updating:
            self._require_open()
            document, size = weigh(compiled)
            changes: list[PolicyChanged] = []

            def happened(answers: Answers) -> None:
                changed = PolicyChanged(
                    sandbox=self.name,
                    mode=compiled.mode.value,
                    cut=tuple(number for answer in answers for number in answer.get("cut", ())),
                    kept=sum(answer.get("kept", 0) for answer in answers),
                )
                self.emit(changed)
                changes.append(changed)

            # Without an await in between: a worker that starts is told the policy as it is now, or is told of this update.
            self._policy, self._written, self._size = compiled, document, size
            await self._tell(self, {"do": "update", "name": self.name, "policy": document}, self.patience, happened)
        return changes[0]

    # -- what the program in the sandbox needs

    @property
    def certificate_pem(self) -> bytes:
        """The certificate of this sandbox's own authority, which all workers share."""
        return self._identity.authority.certificate_pem

    def environment(
        self, *, proxy: str | None = None, auth: ListenerAuth | None = None, directory: Path | None = None
    ) -> dict[str, str | None]:
        """Return the variables that make clients trust the sandbox's certificate authority, and use the proxy.

        Args:
            proxy: its address as the program sees it (``host:port``); by default the first TCP endpoint.
            auth: user and password if they aren't those that the listeners ask for.
            directory: where to write the trust files; a private temporary directory until the sandbox is closed, by default.

        Returns:
            Values by name; ``None`` for variables that must be removed, because they would override these.

        Raises:
            ConfigurationError: there are only Unix sockets, which proxy variables can't name.
            OSError: the files can't be written.
        """
        self._require_open()
        where = proxy or next((place.endpoint for place in self._places if not place.is_unix), "unix:")
        if where.startswith("unix:"):
            raise ConfigurationError("proxy variables can't name a Unix socket; give the address that the program will see")
        auth = auth or self._auth
        user = "" if auth is None else f"{quote(auth.user, safe='')}:{quote(auth.password, safe='')}@"
        return self._identity.trust.environment(f"http://{user}{where}", directory)

    def write_trust(self, directory: Path | None = None) -> tuple[Path, Path]:
        """Write ``ca.pem`` and ``bundle.pem``, as ``Sandbox.write_trust`` does; returns their paths."""
        return self._identity.trust.write(directory)

    # -- the end

    async def aclose(self) -> None:
        """Cut all flows in all workers, stop serving, and remove the trust files; again is harmless."""
        if self._closed:
            return
        self._closed = True
        with trio.CancelScope(shield=True):  # bounded: who doesn't answer is killed
            await self.close_places()
            self._identity.trust.close()
            await self._tell(self, {"do": "close", "name": self.name}, PATIENCE, lambda _: None)
            await self._forget()
        await trio.lowlevel.checkpoint_if_cancelled()

    # -- for the supervisor

    @property
    def is_closed(self) -> bool:
        """Whether it is closed, or being closed."""
        return self._closed

    async def close_places(self) -> None:
        """Stop listening here; workers that still do have sockets of their own."""
        for place in self._places:
            await place.aclose()

    def end(self) -> None:
        """Note that the workers have ended."""
        self._closed = True
        self._identity.trust.close()

    def notice(self) -> dict[str, Any]:
        """Return what tells a worker where it listens: nothing may be connected to that, see ``Proxy.note_listeners``."""
        listeners = [place.endpoint for place in self._places if not place.is_unix]
        return {"do": "note", "name": self.name, "listeners": listeners}

    def creation(self, slot: int) -> tuple[dict[str, Any], list[int]]:
        """Return what tells the worker at *slot* to serve it, by the policy of this moment, and the sockets for that."""
        message = {
            "do": "create",
            "name": self.name,
            "policy": self._written,
            "secrets": sorted(self._secrets.names),
            "key": base64.b64encode(self._founding.key).decode(),
            "certificate": base64.b64encode(self._founding.certificate).decode(),
            "auth": None if self._auth is None else [self._auth.user, self._auth.password],
            "trusted": self._trusted,
            "events": self._is_observed,
        }
        return message, [place.descriptor(slot) for place in self._places]

    @property
    def patience(self) -> float:
        """Seconds that a worker has for reading the policy, and putting it in force."""
        return PATIENCE + self._size / BYTES_A_SECOND

    async def secret(self, name: str) -> tuple[str, float]:
        """Return a secret's value, for a worker that asks, and for how many seconds that may keep it; raises ``SecretError``."""
        value = await self._secrets.get(name)
        return value.reveal(), self._secrets.keep(name)

    def emit(self, event: Event) -> None:
        """Tell the observers."""
        match event:
            case FlowOpened(flow=flow):
                self._flows.add(flow)
            case FlowClosed(flow=flow):
                self._flows.discard(flow)
            case _:
                pass
        self._pass_on(event)

    def lose(self, number: int) -> int:
        """Forget the flows of worker *number*, which has ended; returns how many there were."""
        lost = {flow for flow in self._flows if flow // FLOWS == number}
        self._flows -= lost
        return len(lost)

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"sandbox {self.name!r} is closed")
