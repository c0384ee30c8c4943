"""Proxies from Debian, each with a configuration that does the same work in one process or thread."""

from __future__ import annotations

__all__ = ["HAPROXY", "NGINX", "PACKAGES", "SQUID", "TINYPROXY", "find"]

import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.process import Process, spawn
from benchmarks.rig import DENIED, FRESH, KINDS, PIPELINED, Rig, tunnel_name
from benchmarks.subjects.subject import By, Running, Subject, Unavailable, free_port, program_version, wait_for_port

PACKAGES = {
    "squid": "squid-openssl",
    "tinyproxy": "tinyproxy-bin",
    "haproxy": "haproxy",
    "nginx": "nginx-light libnginx-mod-stream",
    "dnsmasq": "dnsmasq-base",
}
"""Programs, and the packages that bring them."""

_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
_STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
_CERTGEN = Path("/usr/lib/squid/security_file_certgen")


def find(name: str) -> str:
    """Return where a program is; servers are where only root's PATH leads.

    Raises:
        Unavailable: it isn't there; the message names the package.
    """
    path = shutil.which(name, path=_PATH)
    if path is None:
        raise Unavailable(f"not installed (Debian: {PACKAGES[name]}); `python -m benchmarks setup` as root installs it")
    return path


def _version_of(name: str, flag: str, pattern: str) -> str | None:
    path = shutil.which(name, path=_PATH)
    return program_version([path, flag], pattern) if path else None


def _run(stack: ExitStack, rig: Rig, name: str, argv: list[str], port: int) -> Process:
    log = rig.directory / f"{name}.log"
    process = spawn(stack, argv, log=log, cpu=rig.subject_cpu)
    wait_for_port(process, port, log)
    return process


def _start_squid(stack: ExitStack, rig: Rig) -> Running:
    """Tunnel by name or terminate, mint, log: what sbxproxy does is what Squid can do best of them."""
    program = find("squid")
    if not _CERTGEN.exists():
        raise Unavailable("this Squid has no TLS (Debian: squid-openssl)")
    port, directory = free_port(), Path(tempfile.mkdtemp(dir=rig.directory, prefix="squid-"))
    certificates = rig.certificates
    hosts = [*(tunnel_name(kind) for kind in KINDS), PIPELINED, *(f"n{index}.api.example" for index in range(FRESH))]
    (directory / "hosts").write_text("".join(f"127.0.0.1 {host}\n" for host in hosts))
    store = directory / "store"
    subprocess.run([str(_CERTGEN), "-c", "-s", str(store), "-M", "64MB"], check=True, capture_output=True)
    (directory / "squid.conf").write_text(f"""
http_port 127.0.0.1:{port} ssl-bump generate-host-certificates=on dynamic_cert_mem_cache_size=64MB cert={certificates.proxy_ca_both}
sslcrtd_program {_CERTGEN} -s {store} -M 64MB
sslcrtd_children 5 startup=5 idle=1
acl hello at_step SslBump1
acl terminated ssl::server_name .api.example
ssl_bump peek hello
ssl_bump bump terminated
ssl_bump splice all
acl allowed dstdomain .tunnel.example .api.example
http_access allow allowed
http_access deny all
request_header_add x-bench injected all
tls_outgoing_options cafile={certificates.origin_ca}
hosts_file {directory}/hosts
dns_nameservers 127.0.0.1
cache deny all
cache_mem 8 MB
access_log stdio:{directory}/access.log
cache_log {directory}/cache.log
pid_filename none
coredump_dir {directory}
pinger_enable off
shutdown_lifetime 0 seconds
max_filedescriptors 65536
workers 1
""")
    if os.geteuid() == 0:
        user = pwd.getpwnam("proxy")
        for path in (directory, *directory.rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid)
    process = _run(stack, rig, "squid", [program, "-N", "-f", str(directory / "squid.conf")], port)
    denied = (f"{DENIED}:{rig.ports['hello']}", DENIED)
    return Running(
        port=port,
        process=process,
        tunnels=By.NAME,
        terminated=By.NAME,
        mints=True,
        authority=certificates.proxy_ca,
        denied=denied,
    )


def _start_tinyproxy(stack: ExitStack, rig: Rig) -> Running:
    program, port = find("tinyproxy"), free_port()
    allowed, configuration = rig.directory / "tinyproxy.filter", rig.directory / "tinyproxy.conf"
    allowed.write_text("^127\\.0\\.0\\.1$\n")
    configuration.write_text(f"""
Port {port}
Listen 127.0.0.1
Timeout 600
MaxClients 60000
Allow 127.0.0.1
LogLevel Warning
LogFile "{rig.directory}/tinyproxy.out"
Filter "{allowed}"
FilterExtended On
FilterDefaultDeny Yes
""")
    process = _run(stack, rig, "tinyproxy", [program, "-d", "-c", str(configuration)], port)
    return Running(port=port, process=process, denied=(f"127.0.0.2:{rig.ports['hello']}", tunnel_name("hello")))


def _by_server_name(rig: Rig, process: Process, port: int, terminated: int) -> Running:
    """Describe a proxy that routes by server name, without CONNECT."""
    return Running(
        port=port,
        process=process,
        terminated_port=terminated,
        tunnels=By.SNI,
        terminated=By.SNI,
        authority=rig.certificates.proxy_ca,
        denied=("", DENIED),
    )


def _start_haproxy(stack: ExitStack, rig: Rig) -> Running:
    program, port, terminated = find("haproxy"), free_port(), free_port()
    certificates, configuration = rig.certificates, rig.directory / "haproxy.cfg"
    most = (rig.descriptors - 100) // 2
    routes = "\n".join(f"  use_backend {kind} if {{ req.ssl_sni {tunnel_name(kind)} }}" for kind in KINDS)
    backends = "\n".join(f"backend {kind}\n  server origin 127.0.0.1:{rig.ports[kind]}" for kind in KINDS)
    configuration.write_text(f"""
global
  nbthread 1
  maxconn {most}
defaults
  mode tcp
  maxconn {most}
  timeout connect 10s
  timeout client 600s
  timeout server 600s
frontend tunnels
  bind 127.0.0.1:{port}
  tcp-request inspect-delay 10s
  tcp-request content reject if {{ req.ssl_hello_type 1 }} !{{ req.ssl_sni -m end .tunnel.example }}
  tcp-request content accept if {{ req.ssl_hello_type 1 }}
{routes}
{backends}
frontend terminated
  mode http
  bind 127.0.0.1:{terminated} ssl crt {certificates.proxy_leaf} alpn http/1.1
  http-request set-header x-bench injected
  default_backend api
backend api
  mode http
  server origin 127.0.0.1:{rig.ports["tls"]} ssl verify required ca-file {certificates.origin_ca} sni req.hdr(host),field(1,:) alpn http/1.1
""")
    process = _run(stack, rig, "haproxy", [program, "-db", "-f", str(configuration)], port)
    return _by_server_name(rig, process, port, terminated)


def _start_nginx(stack: ExitStack, rig: Rig) -> Running:
    program, port, terminated = find("nginx"), free_port(), free_port()
    if not _STREAM.exists():
        raise Unavailable("nginx has no stream module (Debian: libnginx-mod-stream)")
    certificates, configuration = rig.certificates, rig.directory / "nginx.conf"
    routes = "\n".join(f"    {tunnel_name(kind)} 127.0.0.1:{rig.ports[kind]};" for kind in KINDS)
    temporary = "\n".join(
        f"  {name}_temp_path {rig.directory}/nginx-{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration.write_text(f"""
load_module {_STREAM};
daemon off;
worker_processes 1;
worker_rlimit_nofile 65536;
pid {rig.directory}/nginx.pid;
error_log {rig.directory}/nginx.err;
events {{ worker_connections 50000; }}
stream {{
  map $ssl_preread_server_name $where {{
{routes}
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    ssl_preread on;
    proxy_pass $where;
  }}
}}
http {{
  access_log off;
{temporary}
  upstream origin {{ server 127.0.0.1:{rig.ports["tls"]}; keepalive 256; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{terminated} ssl backlog=4096;
    keepalive_requests 100000000;
    ssl_certificate {certificates.proxy_leaf};
    ssl_certificate_key {certificates.proxy_leaf};
    location / {{
      proxy_pass https://origin;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $host;
      proxy_set_header x-bench injected;
      proxy_ssl_server_name on;
      proxy_ssl_name $host;
      proxy_ssl_verify on;
      proxy_ssl_trusted_certificate {certificates.origin_ca};
    }}
  }}
}}
""")
    process = _run(stack, rig, "nginx", [program, "-c", str(configuration), "-e", f"{rig.directory}/nginx.err"], port)
    return _by_server_name(rig, process, port, terminated)


SQUID = Subject(
    "Squid",
    "one worker, ssl-bump, five certificate helpers, access log",
    lambda: _version_of("squid", "-v", r"Version (\S+)"),
    _start_squid,
)
TINYPROXY = Subject(
    "tinyproxy",
    "a thread per connection; filter by address; tunnels only",
    lambda: _version_of("tinyproxy", "-v", r"tinyproxy (\S+)"),
    _start_tinyproxy,
)
HAPROXY = Subject(
    "HAProxy",
    "one thread, routes by server name without CONNECT, one fixed certificate",
    lambda: _version_of("haproxy", "-v", r"version (\S+)"),
    _start_haproxy,
)
NGINX = Subject(
    "nginx",
    "one worker, stream and http, routes by server name without CONNECT, one fixed certificate",
    lambda: _version_of("nginx", "-v", r"nginx/(\S+)"),
    _start_nginx,
)
