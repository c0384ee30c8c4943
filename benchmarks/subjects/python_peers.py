"""Proxies from PyPI, each in an environment of its own, since they pin versions of libraries that sbxproxy uses too."""

from __future__ import annotations

__all__ = ["DISTRIBUTIONS", "MITMPROXY", "PPROXY", "PROXY_PY", "environment_of"]

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.build import BUILD
from benchmarks.process import spawn
from benchmarks.rig import Rig
from benchmarks.subjects.subject import By, Running, Subject, Unavailable, free_port, program_version, wait_for_port

DISTRIBUTIONS = ("mitmproxy", "proxy.py", "pproxy")
_MISSING = "not installed; `python -m benchmarks setup` puts it into an environment of its own"


def environment_of(distribution: str) -> Path:
    """Return where a distribution is, or would be."""
    return BUILD / "venv" / distribution


def _program(distribution: str, name: str) -> Path:
    path = environment_of(distribution) / "bin" / name
    if not path.exists():
        raise Unavailable(_MISSING)
    return path


def _version(distribution: str) -> Callable[[], str | None]:
    code = f"import importlib.metadata as m; print(m.version({distribution!r}))"
    return lambda: program_version([str(environment_of(distribution) / "bin" / "python"), "-c", code])


def _start_mitmproxy(stack: ExitStack, rig: Rig) -> Running:
    """Pass tunnels on unlooked, and terminate the rest with the CA that it makes itself."""
    program = _program("mitmproxy", "mitmdump")
    directory, log, port = rig.directory / "mitmproxy", rig.directory / "mitmproxy.log", free_port()
    options = {
        "confdir": str(directory),
        "ssl_verify_upstream_trusted_ca": str(rig.certificates.origin_ca),
        "modify_headers": "/~q/x-bench/injected",
        "ignore_hosts": r"tunnel\.example",
    }
    flags = [flag for name, value in options.items() for flag in ("--set", f"{name}={value}")]
    argv = [str(program), "--listen-host", "127.0.0.1", "-p", str(port), "-q", *flags]
    process = spawn(stack, argv, log=log, cpu=rig.subject_cpu)
    wait_for_port(process, port, log)
    return Running(port=port, process=process, terminated=By.ADDRESS, mints=True, authority=directory / "mitmproxy-ca-cert.pem")


def _start_proxy_py(stack: ExitStack, rig: Rig) -> Running:
    """One acceptor that does the work itself; hosts by name are terminated, addresses are tunnelled."""
    python = _program("proxy.py", "python")
    log, port = rig.directory / "proxy.py.log", free_port()
    certificates = rig.certificates
    argv = [str(python), str(Path(__file__).with_name("proxy_py.py")), "--hostname", "127.0.0.1", "--port", str(port)]
    argv += ["--num-acceptors", "1", "--num-workers", "1", "--local-executor", "1", "--log-level", "ERROR", "--backlog", "1024"]
    argv += ["--ca-cert-file", str(certificates.proxy_ca), "--ca-key-file", str(certificates.proxy_ca_key)]
    argv += ["--ca-signing-key-file", str(certificates.proxy_ca_key), "--ca-file", str(certificates.origin_ca)]
    argv += ["--ca-cert-dir", str(rig.directory / "proxy.py-certificates"), "--data-dir", str(rig.directory / "proxy.py")]
    process = spawn(stack, argv, log=log, cpu=rig.subject_cpu)
    wait_for_port(process, port, log)
    return Running(port=port, process=process, terminated=By.NAME, mints=True, authority=certificates.proxy_ca)


def _start_pproxy(stack: ExitStack, rig: Rig) -> Running:
    program = _program("pproxy", "pproxy")
    log, port = rig.directory / "pproxy.log", free_port()
    process = spawn(stack, [str(program), "-l", f"http://127.0.0.1:{port}"], log=log, cpu=rig.subject_cpu)
    wait_for_port(process, port, log)
    return Running(port=port, process=process)


MITMPROXY = Subject(
    "mitmproxy", "`mitmdump -q`; `ignore_hosts` for tunnels, `modify_headers`", _version("mitmproxy"), _start_mitmproxy
)
PROXY_PY = Subject("proxy.py", "one acceptor, threadless; a plugin adds the header", _version("proxy.py"), _start_proxy_py)
PPROXY = Subject("pproxy", "as it comes; tunnels only", _version("pproxy"), _start_pproxy)
