"""An HTTP server, over QUIC and over TLS at one address and port, as a program: it says "ready", then a line for whatever arrives.

python quic_server.py ADDRESS PORT CERTIFICATE KEY
"""

import asyncio
import ssl
import sys

from aioquic.asyncio import QuicConnectionProtocol, serve
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import HeadersReceived
from aioquic.quic.configuration import QuicConfiguration


def say(text):
    print(text, flush=True)


class Protocol(QuicConnectionProtocol):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.http = H3Connection(self._quic)

    def quic_event_received(self, event):
        for seen in self.http.handle_event(event):
            if isinstance(seen, HeadersReceived) and seen.stream_ended:
                say("request quic")
                self.http.send_headers(seen.stream_id, [(b":status", b"200"), (b"content-length", b"9")])
                self.http.send_data(seen.stream_id, b"over quic", end_stream=True)
                self.transmit()


async def over_tls(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    say("request tls")
    writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 8\r\nconnection: close\r\nalt-svc: h3=":8443"\r\n\r\nover tls')
    await writer.drain()
    writer.close()


async def main():
    address, port, certificate, key = sys.argv[1:]
    configuration = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN)
    configuration.load_cert_chain(certificate, key)
    server = await serve(address, int(port), configuration=configuration, create_protocol=Protocol)
    received = server.datagram_received

    def count(data, peer):
        say("datagram")
        received(data, peer)

    server.datagram_received = count
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["http/1.1"])
    await asyncio.start_server(over_tls, address, int(port), ssl=context)
    say("ready")
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main())
