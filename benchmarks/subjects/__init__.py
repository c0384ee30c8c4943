"""Everything that can be measured."""

from __future__ import annotations

from benchmarks.subjects.debian_peers import HAPROXY, NGINX, SQUID, TINYPROXY
from benchmarks.subjects.ours import DIRECT, NAIVE, SBXPROXY
from benchmarks.subjects.python_peers import MITMPROXY, PPROXY, PROXY_PY
from benchmarks.subjects.subject import By, Running, Subject, Unavailable

__all__ = ["SUBJECTS", "By", "Running", "Subject", "Unavailable"]

SUBJECTS = (DIRECT, SBXPROXY, NAIVE, PPROXY, PROXY_PY, MITMPROXY, SQUID, TINYPROXY, HAPROXY, NGINX)
