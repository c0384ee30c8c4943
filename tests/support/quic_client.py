"""A QUIC client as a program: it fetches over HTTP/3, and prints what came of it and how long that took, as JSON.

    python quic_client.py ADDRESS PORT NAME CA

A datagram that the kernel refuses ends it, as it makes browsers go on with TCP.
"""

import asyncio
import errno
import json
import sys
import time

from aioquic.asyncio import QuicConnectionProtocol, connect
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived
from aioquic.quic.configuration import QuicConfiguration


class Protocol(QuicConnectionProtocol):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.http = H3Connection(self._quic)
        self.body = asyncio.get_running_loop().create_future()

    def error_received(self, error):
        if not self.body.done():
            self.body.set_result(errno.errorcode[error.errno])

    def quic_event_received(self, event):
        for seen in self.http.handle_event(event):
            if isinstance(seen, DataReceived) and not self.body.done():
                self.body.set_result(seen.data.decode())

    def ask(self, name):
        stream = self._quic.get_next_available_stream_id()
        head = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", name.encode()), (b":path", b"/")]
        self.http.send_headers(stream, head, end_stream=True)
        self.transmit()


async def fetch(address, port, name, ca):
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=name, idle_timeout=20)
    configuration.load_verify_locations(ca)
    client = connect(address, int(port), configuration=configuration, create_protocol=Protocol, wait_connected=False)
    protocol = await client.__aenter__()
    protocol.transmit()
    connected = asyncio.ensure_future(protocol.wait_connected())
    await asyncio.wait({connected, protocol.body}, return_when=asyncio.FIRST_COMPLETED)
    if not protocol.body.done():
        await connected
        protocol.ask(name)
    return await protocol.body


async def main():
    started = time.monotonic()
    try:
        outcome = await asyncio.wait_for(fetch(*sys.argv[1:]), 30)
    except Exception as error:
        outcome = type(error).__name__
    print(json.dumps([outcome, time.monotonic() - started]), flush=True)
    sys.exit(0)


asyncio.run(main())
