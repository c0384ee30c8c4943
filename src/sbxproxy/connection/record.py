"""What observers are told of one connection."""

from __future__ import annotations

__all__ = ["Recorder"]

from functools import lru_cache

import trio

from sbxproxy.address import IPAddress
from sbxproxy.connection.context import Context
from sbxproxy.errors import UpstreamError
from sbxproxy.events import FlowClosed, FlowOpened, Problem, RequestDone
from sbxproxy.flow import Flow
from sbxproxy.hostname import Hostname
from sbxproxy.http.handler import Record
from sbxproxy.policy.decision import Deny


class Recorder:
    """Writes the events of one flow.

    Attributes:
        failure: why what was allowed could not be had, once that is so.
    """

    __slots__ = ("_address", "_address_text", "_context", "_flow", "_target", "failure")

    def __init__(self, context: Context, flow: Flow) -> None:
        self._context = context
        self._flow = flow
        self._target = _endpoint(flow.facts.host, flow.facts.port)
        self._address: IPAddress | None = None
        self._address_text: str | None = None
        self.failure: UpstreamError | None = None

    def opened(self) -> None:
        """Tell that the flow is connected."""
        flow, decision = self._flow, self._flow.decision
        if decision is None or isinstance(decision, Deny):
            return
        self._context.emit(
            FlowOpened(
                sandbox=flow.sandbox,
                flow=flow.id,
                target=self._target,
                server_name=flow.facts.server_name,
                decision=type(decision).__name__.lower(),
                reason=str(decision.reason),
                rule=decision.matched,
                address=self._endpoint(),
            )
        )

    def _endpoint(self) -> str | None:
        address = self._flow.address
        if address is not self._address:
            self._address = address
            self._address_text = None if address is None else _endpoint(address, self._flow.facts.port)
        return self._address_text

    def problem(self, reason: str, detail: str) -> None:
        """Tell of something that the operator should know."""
        self._context.emit(Problem(sandbox=self._context.sandbox, flow=self._flow.id, reason=str(reason), detail=detail))

    def request(self, record: Record, rule: int | None) -> None:
        """Tell of a request on an inspected connection."""
        self._context.emit(
            RequestDone(
                sandbox=self._context.sandbox,
                flow=self._flow.id,
                method=record.method,
                host=str(self._flow.facts.server_name or self._flow.facts.host),
                path=record.path,
                rule=rule,
                reason=None if record.reason == "ok" else record.reason,
                status=record.status,
                bytes_up=record.bytes_up,
                bytes_down=record.bytes_down,
                duration=record.seconds,
            )
        )

    def summary(self) -> FlowClosed:
        """Return the flow's canonical record."""
        flow = self._flow
        decision, failure = flow.decision, self.failure
        detail, remedy = (decision.detail, decision.remedy) if isinstance(decision, Deny) else ("", None)
        if failure is not None:
            detail = str(failure)
        return FlowClosed(
            sandbox=flow.sandbox,
            flow=flow.id,
            front=flow.front,
            target=self._target,
            wire=flow.facts.wire,
            server_name=flow.facts.server_name,
            decision="error" if failure is not None or decision is None else type(decision).__name__.lower(),
            reason=failure.reason if failure is not None else str(decision.reason) if decision is not None else flow.ended,
            rule=decision.matched if decision is not None else None,
            detail=detail,
            remedy=remedy,
            address=self._endpoint(),
            bytes_up=flow.bytes_up,
            bytes_down=flow.bytes_down,
            requests=flow.requests,
            duration=trio.current_time() - flow.started,
            ended=flow.ended,
        )


@lru_cache(maxsize=1024)
def _endpoint(host: Hostname | IPAddress, port: int) -> str:
    """Write a host with its port; the few that a sandbox talks to are written for each flow three times."""
    text = str(host)
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"
