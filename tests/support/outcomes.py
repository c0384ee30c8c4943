"""What comes of each client in each way of capture: the table that tests hold the clients, and the documents, to."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

MODES = ("namespaces", "env")
CASES = ("allowed", "injected", "denied", "stranger")


class Outcome(Enum):
    RELAYED = "got its answer from the server whose own certificate it verified"
    INJECTED = "got its answer, verified the sandbox's authority, and the server read the header"
    DISTRUSTED = "met a certificate that it doesn't trust, and asked nothing"
    UNSPOKEN = "found no protocol in common with the sandbox's proxy, and asked nothing"
    UNREACHED = "got nowhere"
    BROKEN = "anything else"


Outcomes = Mapping[str, Outcome]

FINE: Outcomes = MappingProxyType(
    {"allowed": Outcome.RELAYED, "injected": Outcome.INJECTED, "denied": Outcome.UNREACHED, "stranger": Outcome.DISTRUSTED}
)
UNTRUSTING: Outcomes = MappingProxyType({**FINE, "allowed": Outcome.DISTRUSTED, "injected": Outcome.DISTRUSTED})
NOWHERE: Outcomes = MappingProxyType(dict.fromkeys(CASES, Outcome.UNREACHED))
UNSPOKEN: Outcomes = MappingProxyType({**FINE, "injected": Outcome.UNSPOKEN})


class Row:
    """One client: what it is called in the documents, how it does, and what a user should know."""

    def __init__(self, title: str, note: str = "", *, namespaces: Outcomes = FINE, env: Outcomes = FINE) -> None:
        self.title = title
        self.note = note
        self.by_mode = {"namespaces": namespaces, "env": env}


_OLD_NODE = "`env`: from Node 22.21 and 24.5; before, it knows no proxy variables"

ROWS = {
    "curl": Row("curl"),
    "wget": Row(
        "wget (GnuTLS, Debian's)", "`env`: no variable names its roots; `--ca-certificate=$SSL_CERT_FILE`", env=UNTRUSTING
    ),
    "git": Row("git"),
    "openssl": Row("openssl s_client", "`env`: knows no proxy variables; `-proxy`", env=NOWHERE),
    "urllib": Row("Python urllib"),
    "requests": Row("Python requests"),
    "httpx": Row("Python httpx"),
    "aiohttp": Row("Python aiohttp", "`env`: only with `trust_env=True`", env=NOWHERE),
    "pip": Row("pip"),
    "uv": Row("uv (Rust, rustls)"),
    "cargo": Row("Cargo (Rust, libcurl)"),
    "node-fetch": Row("Node `fetch`", _OLD_NODE, env=NOWHERE),
    "node-https": Row("Node `https`", _OLD_NODE, env=NOWHERE),
    "npm": Row("npm"),
    "pnpm": Row("pnpm 12 (Rust)"),
    "deno": Row("Deno (Rust, rustls)"),
    "bun": Row("Bun"),
    "go": Row("Go `net/http`"),
    "java": Row("Java `java.net.http`", "`env`: `-Dhttps.proxyHost=… -Djavax.net.ssl.trustStore=…`", env=NOWHERE),
    "ruby": Row("Ruby `Net::HTTP`"),
    "perl": Row("Perl LWP", "`env`: with `env_proxy`, which `lwp-request` sets"),
    "nss": Row("NSS (`tstclnt`), as in Chromium", "with `run --nss`, which takes `certutil`", env=NOWHERE),
    "php": Row("PHP streams", "`env`: a stream context's `proxy` only", env=NOWHERE),
    "grpc": Row(
        "gRPC (C core: Python, Ruby, C++)",
        "wants HTTP/2, which terminated connections don't offer: allow its hosts without rules",
        namespaces=UNSPOKEN,
        env=UNSPOKEN,
    ),
    "libpq": Row(
        "PostgreSQL `sslmode=verify-full sslrootcert=system` (libpq 16 and newer)",
        "not HTTP: there is nothing to inject. `env`: knows no proxy variables",
        namespaces={case: outcome for case, outcome in FINE.items() if case != "injected"},
        env={case: outcome for case, outcome in NOWHERE.items() if case != "injected"},
    ),
}


def _cell(outcomes: Outcomes) -> str:
    found = {**FINE, **outcomes}  # a case that a client doesn't have says nothing
    match found:
        case _ if found == FINE:
            return "yes"
        case _ if found == UNTRUSTING:
            return "no: has roots of its own"
        case _ if found == UNSPOKEN:
            return "relayed yes, terminated no"
    return "no: finds no proxy"


def table() -> str:
    """The table as Markdown."""
    lines = ["| client | `namespaces` | `env` | what to know |", "|---|---|---|---|"]
    for row in ROWS.values():
        cells = (_cell(row.by_mode[mode]) for mode in MODES)
        lines.append(f"| {row.title} | {' | '.join(cells)} | {row.note} |")
    return "\n".join(lines) + "\n"
