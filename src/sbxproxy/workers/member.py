"""One worker as its supervisor sees it: a process, its channel, and the calls that it hasn't answered yet.

A worker that doesn't answer in time is killed. That makes it true that what it was told has happened: nothing that it was doing goes on.
"""

from __future__ import annotations

__all__ = ["Call", "Member", "refused"]

import itertools
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import trio

from sbxproxy.errors import ConfigurationError
from sbxproxy.workers.channel import Channel
from sbxproxy.workers.framing import ProtocolError
from sbxproxy.workers.process import start

MOST = 16 * 1024 * 1024
"""Bytes of a message from a worker; a batch of events with long paths has some two million."""

PATIENCE = 5.0
"""Seconds for an answer, and more where there is much to do."""

LAST_CHANCE = 0.25
"""Seconds for an answer that has come in while this process was busy or stopped, beyond any patience."""

START = 60.0
"""Seconds for a worker to be ready: it imports its plugins, on a machine that may be busy with starting others."""

PULSE = 2.0
"""Seconds between two questions whether a worker still answers."""

PULSE_PATIENCE = 10.0
"""Seconds without an answer to that until a worker is killed: connections that the kernel gives to it would wait for ever."""

FLOWS = 1 << 40
"""Flow ids of one worker; the worker's own number stands above these bits, and JSON's readers know integers up to 2**53."""


class Call:
    """Something that a worker was told to do.

    Attributes:
        answer: the answer; ``None`` until there is one, and for ever if the worker ends before.
        over: set when there is an answer, or the worker has ended.
    """

    __slots__ = ("answer", "over")

    def __init__(self) -> None:
        self.answer: dict[str, Any] | None = None
        self.over = trio.Event()


class Member:
    """A worker, from its start to its end; ``run`` is all of it.

    Attributes:
        slot: which of the workers it is, from 0: the one that takes its place has the same.
        number: unique among all that there ever were, from 1.
        pid: its process; 0 until it has one.
        ended: set when its process is gone.
        why: why it was killed; empty if it wasn't.
        code: its exit code; negative for a signal.
        holds: names of the sandboxes that it was told to serve.
        knows: names of the sandboxes whose listeners it was told of.
    """

    def __init__(self, slot: int, number: int) -> None:
        """Start nothing yet."""
        self.slot = slot
        self.number = number
        self.pid = 0
        self.ended = trio.Event()
        self.why = ""
        self.code: int | None = None
        self.holds: set[str] = set()
        self.knows: set[str] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._numbers = itertools.count(1)
        self._calls: dict[int, Call] = {}

    def __repr__(self) -> str:
        return f"<Member {self.number} in slot {self.slot}, process {self.pid}{', ended' if self.ended.is_set() else ''}>"

    async def run(
        self,
        environment: Mapping[str, str],
        use: Callable[[], Awaitable[None]],
        heard: Callable[[dict[str, Any]], None],
    ) -> None:
        """Start the process, and stay until it ends, or until cancelled, which kills it.

        Args:
            environment: its variables.
            use: called when it runs; may end before it.
            heard: told of its messages that are no answers.

        Raises:
            ConfigurationError: it can't be started.
        """
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise ConfigurationError(f"workers: no channel to a process can be made: {error.strerror}") from None
        try:
            with theirs:
                self._channel = Channel(ours, most=MOST)
                self._process = start(theirs, environment)
            self.pid = self._process.pid
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, self._channel)
                nursery.start_soon(use)
                await self._read(self._channel, heard)
                nursery.cancel_scope.cancel(reason="the worker has ended")
        finally:
            ours.close()
            if self._channel is not None:
                self._channel.close()
            if self._process is not None:
                self._process.kill()
                with trio.CancelScope(shield=True):  # a killed process ends
                    self.code = await trio.to_thread.run_sync(self._process.wait)
            self.ended.set()
            for call in self._calls.values():
                call.over.set()

    async def _write(self, channel: Channel) -> None:
        try:
            await channel.write()
        except OSError:
            self.kill("its channel broke")

    async def _read(self, channel: Channel, heard: Callable[[dict[str, Any]], None]) -> None:
        try:
            while (received := await channel.receive()) is not None:
                message, _ = received
                match message:
                    case {"do": "done" | "failed", "call": int(number), **more}:
                        if number not in self._calls or not _is_result(more):
                            raise ProtocolError("an answer to nothing, or none")
                        call = self._calls.pop(number)
                        call.answer = message
                        call.over.set()
                    case _:
                        heard(message)
        except ProtocolError as error:
            self.kill(f"its messages were wrong: {error}")

    def call(self, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> Call:
        """Tell it to do something; what it is told before is done before."""
        call = Call()
        number = next(self._numbers)
        self._calls[number] = call
        try:
            self.post({**message, "call": number}, descriptors)
        except OSError:  # no descriptors left here: it can't be told, so it must not go on without
            self.kill("it could not be given its sockets")
        if self.ended.is_set():
            call.over.set()
        return call

    def post(self, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send a message that has no answer."""
        if self._channel is not None and not self.ended.is_set():
            self._channel.post(message, descriptors)

    async def expect(self, call: Call, patience: float = PATIENCE) -> dict[str, Any] | None:
        """Wait until *call* is answered, and return the answer; kill the worker if that takes more than *patience* seconds.

        ``None`` says that the worker has ended, with its flows.
        """
        # The second wait is for an answer that is here and wasn't read: this process may have been stopped itself.
        for seconds in (patience, LAST_CHANCE):
            with trio.move_on_after(seconds):
                await call.over.wait()
        if call.answer is None:
            self.kill(f"it did not answer in {patience:g} s")
        elif call.answer["do"] == "failed":
            self.kill(f"it could not do what it was told: {call.answer.get('error')}")
        else:
            return call.answer
        await self.ended.wait()
        return None

    async def pulse(self) -> None:
        """Ask now and then whether it still answers, until cancelled."""
        while True:
            await trio.sleep(PULSE)
            await self.expect(self.call({"do": "ping"}), PULSE_PATIENCE)

    def kill(self, why: str) -> None:
        """End it; the first reason given stands. Nothing of it goes on once ``ended`` is set."""
        if not self.ended.is_set():
            self.why = self.why or why
            if self._process is not None:
                self._process.kill()

    def describe(self) -> str:
        """Tell how it ended."""
        if self.why:
            return f"was killed, since {self.why}"
        if self.code is not None and self.code < 0:
            return f"ended with {signal.Signals(-self.code).name}"
        return f"ended with code {self.code}"


def _is_result(more: Mapping[str, Any]) -> bool:
    match more:
        case {"cut": list(cut), "kept": int()}:
            return len(more) == 2 and all(type(number) is int for number in cut)
        case {"error": str()}:
            return len(more) == 1
        case _:
            return not more


def refused(answer: Mapping[str, Any] | None) -> ConfigurationError:
    """Make an error of a worker's answer to its start."""
    if answer is None:
        return ConfigurationError("a worker ended before it was ready; its standard error may tell why")
    return ConfigurationError(str(answer.get("error")))
