"""Runs in proxy.py's own environment: its program, a plugin that adds the header, and the benchmark's names."""

# mypy: ignore-errors
# ruff: noqa: ANN001, ANN002, ANN003, ANN201, ANN202 - proxy.py isn't installed where types are checked
from __future__ import annotations

import socket
import sys

from proxy import main
from proxy.http.proxy import HttpProxyBasePlugin

_look_up = socket.getaddrinfo


def _known(host, *args, **kwargs):
    """Answer for the benchmark's names, so that nothing is asked of a name server."""
    text = host.decode() if isinstance(host, bytes) else host
    return _look_up("127.0.0.1" if text.endswith(".api.example") else host, *args, **kwargs)


socket.getaddrinfo = _known


class AddHeader(HttpProxyBasePlugin):
    """Adds a header to requests, and terminates hosts that are given by name."""

    def handle_client_request(self, request):
        if request.method != b"CONNECT":
            request.add_header(b"x-bench", b"injected")
        return request

    def do_intercept(self, request):
        return bool(request.host) and request.host.endswith(b".api.example")


if __name__ == "__main__":
    sys.exit(main(plugins=[AddHeader]))
