"""Capture the ClientHellos of real clients on loopback, as fixtures: ``python tests/data/capture_hellos.py [name ...]``.

Each client is told to open https://hello.example:PORT/ where the name leads to a listener of ours. The listener keeps
what the client sends until the hello is whole by its own record and message lengths, and closes. No byte leaves the
machine.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

HOST = "hello.example"
OUT = Path(__file__).parent / "hellos"
BROWSERS = (
    "chrome99_android",
    "chrome110",
    "chrome124",
    "chrome131",
    "chrome142",
    "chrome150",
    "edge101",
    "firefox133",
    "firefox144",
    "firefox147",
    "safari153",
    "safari184",
    "safari260",
    "safari260_ios",
    "tor145",
)


def browser(name: str) -> Callable[[int], None]:
    def run(port: int) -> None:
        from curl_cffi import Curl, CurlError, CurlOpt

        curl = Curl()
        curl.impersonate(name)
        curl.setopt(CurlOpt.URL, f"https://{HOST}:{port}/".encode())
        curl.setopt(CurlOpt.RESOLVE, [f"{HOST}:{port}:127.0.0.1"])
        curl.setopt(CurlOpt.TIMEOUT, 5)
        with contextlib.suppress(CurlError):
            curl.perform()
        curl.close()

    return run


def python_ssl(port: int) -> None:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    with socket.create_connection(("127.0.0.1", port), 5) as raw, contextlib.suppress(OSError):
        context.wrap_socket(raw, server_hostname=HOST)


def pyopenssl(port: int) -> None:
    from OpenSSL import SSL

    connection = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
    connection.set_tlsext_host_name(HOST.encode())
    connection.set_connect_state()
    with contextlib.suppress(SSL.WantReadError):
        connection.do_handshake()
    with socket.create_connection(("127.0.0.1", port), 5) as raw:
        raw.sendall(connection.bio_read(65536))
        raw.recv(1)


def command(*argv: str) -> Callable[[int], None]:
    def run(port: int) -> None:
        if shutil.which(argv[0]) is None:
            raise FileNotFoundError(argv[0])
        filled = [part.replace("PORT", str(port)) for part in argv]
        subprocess.run(filled, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False)

    return run


NODE = f"require('tls').connect({{host:'127.0.0.1',port:PORT,servername:'{HOST}'}}).on('error',()=>{{}})"

CLIENTS: dict[str, Callable[[int], None]] = {
    **{name: browser(name) for name in BROWSERS},
    "python_ssl": python_ssl,
    "pyopenssl": pyopenssl,
    "curl": command("curl", "-s", "--resolve", f"{HOST}:PORT:127.0.0.1", f"https://{HOST}:PORT/"),
    "node": command("node", "-e", NODE),
    "openssl_tls12": command("openssl", "s_client", "-connect", "127.0.0.1:PORT", "-servername", HOST, "-tls1_2"),
    "openssl_tls13": command("openssl", "s_client", "-connect", "127.0.0.1:PORT", "-servername", HOST),
}


def whole(data: bytes) -> bool:
    """Whether the records so far hold the whole handshake message (independent of the parser under test)."""
    message, rest = b"", data
    while len(rest) >= 5:
        length = int.from_bytes(rest[3:5], "big")
        message += rest[5 : 5 + length]
        rest = rest[5 + length :]
    return len(message) >= 4 and len(message) >= 4 + int.from_bytes(message[1:4], "big")


def capture(run: Callable[[int], None]) -> bytes:
    data = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)

        def serve() -> None:
            with contextlib.suppress(OSError):
                client, _ = listener.accept()
                client.settimeout(5)
                with client:
                    while not whole(bytes(data)):
                        chunk = client.recv(65536)
                        if not chunk:
                            break
                        data.extend(chunk)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            run(listener.getsockname()[1])
        finally:
            thread.join()
    return bytes(data)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    for name in sys.argv[1:] or CLIENTS:
        try:
            data = capture(CLIENTS[name])
        except (ImportError, FileNotFoundError) as missing:
            print(f"{name}: not available ({missing})")
            continue
        if whole(data):
            (OUT / f"{name}.bin").write_bytes(data)
        print(f"{name}: {len(data)} bytes")


if __name__ == "__main__":
    main()
