"""A network in memory: a whole proxy with its sandboxes runs on it without a socket, a port or a file descriptor.

What is surprising is how much stays real: names are resolved, addresses judged, TLS is spoken and verified on both sides. Only
the two parts that touch the system are replaced, the resolver and the dialer.
"""

from __future__ import annotations

__all__ = ["MemoryNetwork"]

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import trio
import trio.testing
from trio.abc import Stream

from sbxproxy.address import IPAddress, parse_address
from sbxproxy.errors import UpstreamConnectError, UpstreamResolveError
from sbxproxy.hostname import Hostname, canonical_hostname
from sbxproxy.http.message import Request, Response
from sbxproxy.sandbox import Sandbox
from sbxproxy.testing.http import HttpOrigin, fetch
from sbxproxy.tls import Authority, TlsStream, UpstreamTls

OriginHandler = Callable[[Stream], Awaitable[object]]
"""Serves one connection; the stream is closed when it returns."""

StreamPair = Callable[[], tuple[Stream, Stream]]
"""Makes the two ends of a connection."""


class MemoryNetwork:
    """Origins by name and address, for one event loop.

    ``MemoryNetwork`` is its own resolver, and ``dial`` its dialer::

        network = MemoryNetwork()
        origin = network.add_https("api.example.com")
        proxy = Proxy(Settings(upstream_roots=network.write_roots(tmp_path)), resolver=network, dialer=network.dial)
        await nursery.start(network.run)
        await nursery.start(proxy.run)
        sandbox = proxy.create_sandbox("test", policy={"allow": ["api.example.com"]})
        response = await network.request(sandbox, make_request("GET", "/"))

    Trio's memory streams have no bound, so nothing ever waits for a slow reader on them; give ``lockstep_stream_pair`` of
    ``trio.testing`` where a test is about that.

    Attributes:
        resolved: the names that were asked for, in order.
        dialled: the addresses and ports that were connected to, or tried, in order.
    """

    def __init__(self, *, pair: StreamPair = trio.testing.memory_stream_pair) -> None:
        """Make a network without origins.

        Args:
            pair: makes the two ends of each connection.
        """
        self.resolved: list[Hostname] = []
        self.dialled: list[tuple[IPAddress, int]] = []
        self._pair = pair
        self._names: dict[Hostname, tuple[IPAddress, ...]] = {}
        self._origins: dict[tuple[IPAddress, int], OriginHandler] = {}
        self._authority = Authority(name="memory network")
        self._nursery: trio.Nursery | None = None

    def __repr__(self) -> str:
        return f"<MemoryNetwork {len(self._names)} names, {len(self._origins)} origins>"

    # -- origins

    def add(self, host: str, port: int, handler: OriginHandler, *, addresses: Sequence[str] | None = None) -> None:
        """Let *handler* serve *port* of *host*.

        Args:
            host: a host name, or an address that has no name.
            port: 1 to 65535; one handler each.
            handler: called with a stream per connection.
            addresses: what the name resolves to; by default the ones it has already, or a public address of its own.

        Raises:
            ValueError: *host* or an address is not one, or an address has an origin at that port.
        """
        for address in self._locate(host, addresses):
            if (address, port) in self._origins:
                raise ValueError(f"{address} has an origin at port {port}")
            self._origins[address, port] = handler

    def add_https(
        self,
        host: str,
        answer: Callable[[Request], Response] | None = None,
        *,
        port: int = 443,
        addresses: Sequence[str] | None = None,
    ) -> HttpOrigin:
        """Let *answer* serve HTTP/1.1 over TLS, under a certificate for *host* from this network's own authority.

        Args:
            host: a host name.
            answer: makes the response to a request; by default says ``ok``.
            port: where.
            addresses: see ``add``.

        Returns:
            The origin; its ``requests`` tell what reached it.
        """
        origin = HttpOrigin() if answer is None else HttpOrigin(answer)
        name = canonical_hostname(host)
        if name is None:
            raise ValueError(f"not a host name: {host!r}")

        async def serve(stream: Stream) -> None:
            tls = TlsStream(stream, self._authority.server_context(name), server_side=True)
            await tls.do_handshake()
            await origin(tls)
            await tls.aclose()

        self.add(name, port, serve, addresses=addresses)
        return origin

    def write_roots(self, directory: Path) -> Path:
        """Write the authority's certificate to ``network.pem`` in *directory*: what ``Settings.upstream_roots`` takes."""
        path = directory / "network.pem"
        path.write_bytes(self._authority.certificate_pem)
        return path

    def _locate(self, host: str, addresses: Sequence[str] | None) -> tuple[IPAddress, ...]:
        address = parse_address(host)
        if address is not None:
            return (address,)
        name = canonical_hostname(host)
        if name is None:
            raise ValueError(f"neither a host name nor an address: {host!r}")
        if addresses is not None:
            numbers = tuple(number for text in addresses if (number := parse_address(text)) is not None)
            if not numbers or len(numbers) != len(addresses):
                raise ValueError("addresses must be a list of IP addresses")
            self._names[name] = numbers
        elif name not in self._names:
            index = len(self._names)
            own = parse_address(f"1.1.{index // 256}.{index % 256}")
            assert own is not None
            self._names[name] = (own,)
        return self._names[name]

    # -- what a proxy is given

    async def resolve(self, name: Hostname) -> tuple[IPAddress, ...]:
        """Return the addresses of *name*, as a resolver does.

        Raises:
            UpstreamResolveError: there are none.
        """
        await trio.lowlevel.checkpoint()
        self.resolved.append(name)
        addresses = self._names.get(name)
        if addresses is None:
            raise UpstreamResolveError("the name has no address")
        return addresses

    async def dial(self, addresses: Sequence[IPAddress], port: int) -> tuple[Stream, IPAddress]:
        """Connect to the first of *addresses* that has an origin at *port*, as a dialer does.

        Raises:
            UpstreamConnectError: none has.
            RuntimeError: ``run`` is not running.
        """
        await trio.lowlevel.checkpoint()
        for address in addresses:
            self.dialled.append((address, port))
            handler = self._origins.get((address, port))
            if handler is not None:
                near, far = self._pair()
                self._running().start_soon(self._serve, handler, far, name=f"origin {address} {port}")
                return near, address
        raise UpstreamConnectError("the upstream refused the connection", reason="connection-refused")

    # -- the program's side

    async def connect(self, sandbox: Sandbox, host: str, port: int) -> Stream:
        """Open a connection from within *sandbox*; the caller closes it.

        What the policy forbids ends early, as for a program whose connections are redirected.

        Raises:
            RuntimeError: ``run`` is not running.
        """
        near, far = self._pair()
        self._running().start_soon(sandbox.handle, far, (host, port), name=f"flow to {host} {port}")
        await trio.lowlevel.checkpoint()
        return near

    async def request(self, sandbox: Sandbox, request: Request, *, port: int = 443) -> Response:
        """Send one https request from within *sandbox* to ``request.host``, trusting the sandbox's authority alone.

        Raises:
            UpstreamTlsError: the handshake failed: the policy denies the name, or relays it untouched and the
                origin's own certificate came instead of the sandbox's.
            h11.RemoteProtocolError: the connection ended without a response.
        """
        name = canonical_hostname(request.host)
        if name is None:
            raise ValueError(f"not a host name: {request.host!r}")
        tls = await _trust(sandbox.certificate_pem).connect(await self.connect(sandbox, name, port), name)
        try:
            return await fetch(tls, request)
        finally:
            await trio.aclose_forcefully(tls)

    # -- running

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve the origins until cancelled; what a handler raises ends this, as a test wants it."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def _running(self) -> trio.Nursery:
        if self._nursery is None:
            raise RuntimeError("the network is not running: await nursery.start(network.run)")
        return self._nursery

    async def _serve(self, handler: OriginHandler, stream: Stream) -> None:
        """Run a handler; a client that is gone is no fault of it."""
        try:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await handler(stream)
        finally:
            await trio.aclose_forcefully(stream)


def _trust(certificate_pem: bytes) -> UpstreamTls:
    """Return a client side that believes this authority alone; roots come from files."""
    with TemporaryDirectory(prefix="sbxproxy-testing-") as directory:
        roots = Path(directory, "ca.pem")
        roots.write_bytes(certificate_pem)
        trust = UpstreamTls(roots=roots)
        trust.load()
    return trust
