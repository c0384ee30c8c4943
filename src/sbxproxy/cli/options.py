"""Options that commands share, and what they come to: a policy, settings, secrets."""

from __future__ import annotations

__all__ = [
    "NAMED_POLICIES",
    "Configuration",
    "FileState",
    "PolicySource",
    "Reading",
    "changed",
    "configure",
    "file_state",
    "operator_options",
    "policy_options",
    "read_policy_text",
]

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click

from sbxproxy.address import IPAddress, IPNetwork, parse_address, parse_network
from sbxproxy.errors import ConfigurationError, PolicyError
from sbxproxy.hostname import Hostname, canonical_hostname
from sbxproxy.policy.model import Policy
from sbxproxy.settings import Limits, Settings

F = TypeVar("F", bound=Callable[..., Any])

_POLICY_OPTIONS = ("policy", "allow_all", "deny_all", "allow", "allow_cidr", "deny_cidr", "inject")
NAMED_POLICIES = ("allow-all", "deny-all")
"""What may stand in place of a policy file."""

_CHOICES = "--policy FILE, --allow-all, --deny-all, or any of --allow, --allow-cidr, --deny-cidr, --inject"


FileState = tuple[int, int, int]
"""Inode, size and time of change."""


def changed(environment: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """Return *environment* with *changes*, of which those that are ``None`` remove a variable."""
    merged = {**environment, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def read_policy_text(path: Path) -> str:
    """Read a policy file.

    Raises:
        ConfigurationError: it can't be read; the message names it.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: not UTF-8") from None


@dataclass(frozen=True, slots=True)
class PolicySource:
    """Where the policy comes from, so that it can be read again.

    Attributes:
        path: the file, or ``None`` if it was given otherwise and can't change.
        text: the policy as JSON, where it isn't a file.
        document: the policy as a value, where it was put together from options.
    """

    path: Path | None
    text: str | None = field(default=None, repr=False)
    document: object = field(default=None, repr=False)

    def examine(self) -> Reading:
        """Read and compile it, and note the state of its file; raises as ``read`` does."""
        state = file_state(self.path)
        return Reading(self.read(), state)

    def read(self) -> Policy:
        """Read and compile it.

        Raises:
            ConfigurationError: the file can't be read, or its policy is invalid; the message names the file.
        """
        if self.path is None and self.text is None:
            return Policy.parse(self.document)
        name = str(self.path or "standard input")
        text = self.text if self.path is None else read_policy_text(self.path)
        assert text is not None
        try:
            return Policy.from_json(text)
        except PolicyError as error:
            raise ConfigurationError("\n".join(f"{name}: {problem}" for problem in error.problems)) from None


@dataclass(frozen=True, slots=True)
class Reading:
    """A policy that was read.

    Attributes:
        policy: the policy.
        state: of its file, before it was read, so that no change in between is missed.
    """

    policy: Policy
    state: FileState | None


def file_state(path: Path | None) -> FileState | None:
    """Return what changes whenever a file is written anew; ``None`` without a file."""
    if path is None:
        return None
    with suppress(OSError):
        status = path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What the options come to.

    Attributes:
        source: the policy.
        settings: the operator's.
        secrets: sources by name.
        hidden: environment variables that hold secrets, which a child must not see.
        plugins: names to load.
        events: where JSON lines go: a path, ``-`` for standard output, or ``None``.
        verbosity: -1 quiet, 0 denials and problems, 1 every flow.
    """

    source: PolicySource
    settings: Settings
    secrets: dict[str, Any]
    hidden: frozenset[str]
    plugins: tuple[str, ...]
    events: str | None
    verbosity: int


def _read_config(ctx: click.Context, _parameter: click.Parameter, path: Path | None) -> Path | None:
    if path is not None:
        from sbxproxy.cli.config_file import load_config

        load_config(ctx, path)
    return path


def _stack(function: F, *decorators: Callable[[F], F]) -> F:
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


def policy_options(function: F) -> F:
    """Add the options that give a policy."""
    return _stack(
        function,
        click.option(
            "--policy",
            metavar="FILE",
            help="A policy in JSON, or allow-all or deny-all; - is standard input. Changes of the file take effect at once.",
        ),
        click.option("--allow-all", is_flag=True, help="Allow the public Internet, less what --deny-cidr says."),
        click.option("--deny-all", is_flag=True, help="Allow nothing, name resolution included."),
        click.option("--allow", multiple=True, metavar="HOST", help="Allow a host; *.example.com allows all below example.com."),
        click.option("--allow-cidr", multiple=True, metavar="CIDR", help="Allow an address range, any protocol."),
        click.option("--deny-cidr", multiple=True, metavar="CIDR", help="Deny an address range; beats everything allowed."),
        click.option(
            "--inject",
            multiple=True,
            metavar="'HOST:HEADER: VALUE'",
            help="Allow HOST and set this header in every request to it; VALUE may use ${secret:NAME}.",
        ),
    )


def operator_options(function: F) -> F:
    """Add the options that belong to whoever runs the proxy."""
    return _stack(
        function,
        click.option(
            "--secret",
            multiple=True,
            metavar="NAME=SOURCE",
            help="Where ${secret:NAME} comes from: env:VARIABLE, file:PATH or 'cmd:COMMAND ARGS'.",
        ),
        click.option(
            "--private-network",
            multiple=True,
            metavar="CIDR",
            help="A range that domain rules and --allow-all may reach besides the Internet.",
        ),
        click.option("--never", multiple=True, metavar="CIDR", help="A range that nothing may reach."),
        click.option(
            "--resolve", multiple=True, metavar="HOST:ADDRESS[,ADDRESS]", help="Use these addresses for HOST; IPv6 in brackets."
        ),
        click.option(
            "--limit",
            multiple=True,
            metavar="NAME=VALUE",
            help="Another bound than the default: flows_per_sandbox=20000, idle=none, …; every name is in docs/operations.md.",
        ),
        click.option("--upstream-ca", multiple=True, metavar="FILE", help="More roots to verify upstreams with (PEM)."),
        click.option("--plugin", multiple=True, metavar="NAME", help="Load an installed plugin."),
        click.option("--events", metavar="FILE", help="Append events as JSON lines; - is standard output."),
        click.option("--quiet", is_flag=True, help="Print nothing of what happens."),
        click.option("-v", "--verbose", is_flag=True, help="Print every flow, not only denials and problems."),
        click.option(
            "--config",
            type=click.Path(path_type=Path),
            is_eager=True,
            expose_value=False,
            callback=_read_config,
            metavar="FILE",
            help="A TOML file with these options by their names.",
        ),
    )


def configure(ctx: click.Context) -> Configuration:
    """Make sense of a command's options.

    Raises:
        click.UsageError: one is wrong; the message names it and says what would be right.
    """
    given = dict(ctx.params)
    if given["quiet"] and given["verbose"]:
        raise click.UsageError("--quiet and --verbose exclude each other")
    secrets, hidden = _secrets(given["secret"])
    return Configuration(
        source=_policy(ctx, given),
        settings=settings(given),
        secrets=secrets,
        hidden=hidden,
        plugins=tuple(given["plugin"]),
        events=given["events"],
        verbosity=-1 if given["quiet"] else int(given["verbose"]),
    )


def settings(given: dict[str, Any]) -> Settings:
    """Make the operator's settings of the operator options."""
    return Settings(
        private_networks=_networks("--private-network", given["private_network"]),
        never=_networks("--never", given["never"]),
        resolve=resolve_overrides(given["resolve"]),
        extra_upstream_roots=[Path(path) for path in given["upstream_ca"]],
        limits=_limits(given["limit"]),
    )


def _limits(texts: Sequence[str]) -> Limits:
    if not texts:
        return Limits()
    from sbxproxy.cli.limits import limits

    return limits(texts)


def _policy(ctx: click.Context, given: dict[str, Any]) -> PolicySource:
    command_line = {
        name
        for name in _POLICY_OPTIONS
        if given[name] and ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    used = command_line or {name for name in _POLICY_OPTIONS if given[name]}
    if not used:
        raise click.UsageError(f"a sandbox never runs without a policy; give {_CHOICES}")
    alone = used & {"policy", "allow_all", "deny_all"}
    if alone and len(used) > 1 and used != {"allow_all", "deny_cidr"}:
        names = ", ".join("--" + name.replace("_", "-") for name in sorted(used))
        raise click.UsageError(f"{names} exclude each other; give {_CHOICES}")
    if "allow_all" in used:
        denied = list(given["deny_cidr"]) if "deny_cidr" in used else []
        return PolicySource(None, document={"mode": "allow-all", "subnets": {"deny": denied}})
    if "deny_all" in used:
        return PolicySource(None, document="deny-all")
    if "policy" in used and given["policy"] in NAMED_POLICIES:
        return PolicySource(None, document=given["policy"])
    if "policy" in used:
        return PolicySource(None, text=sys.stdin.read()) if given["policy"] == "-" else PolicySource(Path(given["policy"]))
    allow: dict[str, list[dict[str, list[object]]]] = {}
    for host in given["allow"] if "allow" in used else ():
        allow.setdefault(host, [])
    for text in given["inject"] if "inject" in used else ():
        host, header, value = _inject(text)
        allow.setdefault(host, []).append({"transform": [{"headers": {header: value}}]})
    for host, rules in allow.items():
        if len(rules) > 1:  # one rule that sets all: the first rule that fits would win otherwise
            allow[host] = [{"transform": [step for rule in rules for step in rule["transform"]]}]
    document: dict[str, object] = {"allow": allow}
    subnets = {key: list(given[name]) for key, name in (("allow", "allow_cidr"), ("deny", "deny_cidr")) if name in used}
    if subnets:
        document["subnets"] = subnets
    return PolicySource(None, document=document)


def _inject(text: str) -> tuple[str, str, str]:
    host, colon, rest = text.partition(":")
    header, second, value = rest.partition(":")
    if not (colon and second and host.strip() and header.strip() and value.strip()):
        raise click.UsageError(
            "--inject: write 'HOST:Header: value', for example 'api.example.com:Authorization: Bearer ${secret:api}'"
        )
    return host.strip(), header.strip(), value.strip()


def _secrets(texts: Sequence[str]) -> tuple[dict[str, Any], frozenset[str]]:
    if not texts:
        return {}, frozenset()
    from sbxproxy.secrets import CommandSource, EnvironmentSource, FileSource

    sources: dict[str, Any] = {}
    hidden: set[str] = set()
    for text in texts:
        name, equals, where = text.partition("=")
        kind, colon, rest = where.partition(":")
        if not (equals and colon and name and rest):
            # The text isn't shown: it may be the secret itself.
            raise click.UsageError(
                "--secret: write NAME=env:VARIABLE, NAME=file:PATH or NAME='cmd:COMMAND ARGS'; never the value itself"
            )
        if name in sources:
            raise click.UsageError(f"--secret: {name} is given twice")
        match kind:
            case "env":
                sources[name] = EnvironmentSource(rest)
                hidden.add(rest)
            case "file":
                sources[name] = FileSource(Path(rest))
            case "cmd":
                sources[name] = CommandSource(_argv(name, rest))
            case _:
                raise click.UsageError(
                    f"--secret: {name}: a source is env:VARIABLE, file:PATH or cmd:COMMAND; never the value itself"
                )
    return sources, frozenset(hidden)


def _argv(name: str, text: str) -> list[str]:
    import shlex

    try:
        argv = shlex.split(text)
    except ValueError:
        argv = []
    if not argv:
        raise click.UsageError(f"--secret: {name}: its command is empty, or has a quotation that isn't closed") from None
    return argv


def _networks(option: str, texts: Sequence[str]) -> list[IPNetwork]:
    networks = []
    for text in texts:
        try:
            networks.append(parse_network(text))
        except ValueError as error:
            raise click.UsageError(f"{option}: {error}") from None
    return networks


def resolve_overrides(texts: Sequence[str]) -> dict[Hostname, list[IPAddress]]:
    """Read ``HOST:ADDRESS[,ADDRESS]``."""
    overrides: dict[Hostname, list[IPAddress]] = {}
    for text in texts:
        name, _, rest = text.partition(":")
        host = canonical_hostname(name)
        addresses = [parse_address(part.strip().removeprefix("[").removesuffix("]")) for part in rest.split(",")]
        if host is None or not rest or None in addresses:
            raise click.UsageError(f"--resolve: {text!r}: write HOST:ADDRESS[,ADDRESS], IPv6 in brackets")
        overrides.setdefault(host, []).extend(address for address in addresses if address is not None)
    return overrides
