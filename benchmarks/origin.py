"""The server behind every subject: after a whole ClientHello it sends one byte (``connect``) or bytes without end (``relay``).

``python -m benchmarks.origin HELLO_SIZE`` prints its two ports and serves until its standard input ends, so it can't outlive its
parent.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys
from collections.abc import Callable

CHUNK = bytes(256 * 1024)
HOST = "127.0.0.1"


def listen() -> socket.socket:
    sock = socket.create_server((HOST, 0), backlog=1024)
    sock.setblocking(False)  # noqa: FBT003 - positional only
    return sock


class Origin:
    """One thread and one selector: it must be cheaper than anything it is behind."""

    def __init__(self, hello_size: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._hello_size = hello_size
        self.small, self.bulk = listen(), listen()
        self._selector.register(self.small, selectors.EVENT_READ, lambda _mask: self._accept(self.small, bulk=False))
        self._selector.register(self.bulk, selectors.EVENT_READ, lambda _mask: self._accept(self.bulk, bulk=True))

    def serve(self) -> None:
        done = False

        def end(_mask: int) -> None:
            nonlocal done
            done = not os.read(sys.stdin.fileno(), 4096)

        self._selector.register(sys.stdin, selectors.EVENT_READ, end)
        while not done:
            for key, mask in self._selector.select():
                key.data(mask)

    def _accept(self, listener: socket.socket, *, bulk: bool) -> None:
        for _ in range(64):
            try:
                sock, _peer = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            sock.setblocking(False)  # noqa: FBT003 - positional only
            self._selector.register(sock, selectors.EVENT_READ, self._reader(sock, bulk=bulk))

    def _reader(self, sock: socket.socket, *, bulk: bool) -> Callable[[int], None]:
        missing = self._hello_size

        def read(_mask: int) -> None:
            nonlocal missing
            try:
                data = sock.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._close(sock)
                return
            missing -= len(data)
            if missing <= 0 and missing + len(data) > 0:
                if bulk:
                    self._selector.modify(sock, selectors.EVENT_WRITE, lambda _mask: self._write(sock))
                else:
                    sock.send(b"\x16")

        return read

    def _write(self, sock: socket.socket) -> None:
        try:
            for _ in range(8):
                sock.send(CHUNK)
        except BlockingIOError:
            pass
        except OSError:
            self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        sock.close()


def main() -> None:
    origin = Origin(int(sys.argv[1]))
    print(origin.small.getsockname()[1], origin.bulk.getsockname()[1], flush=True)
    origin.serve()


if __name__ == "__main__":
    main()
