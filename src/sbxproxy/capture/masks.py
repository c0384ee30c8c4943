"""What of the host a confined command doesn't see: places whose Unix sockets lead around the proxy, and variables that name them.

A network namespace keeps abstract sockets apart, but not those with a path. Docker's gives the machine away, D-Bus and the SSH agent
act for the user, tmux types what it is told into a shell outside, systemd-resolved and nscd resolve names. What is hidden here is
where such sockets are by convention; one that somebody put elsewhere, or that comes to be while the command runs, stays in reach
until its place is masked too.
"""

from __future__ import annotations

__all__ = ["KEPT", "UNSET", "default_masks"]

import os
import re
from collections.abc import Mapping
from pathlib import Path

_SOCKET_VARIABLES = (
    "ALACRITTY_SOCKET",
    "EMACS_SOCKET_NAME",
    "I3SOCK",
    "KITTY_LISTEN_ON",
    "NVIM",
    "NVIM_LISTEN_ADDRESS",
    "SSH_AUTH_SOCK",
    "SWAYSOCK",
    "TMUX",
    "VSCODE_GIT_IPC_HANDLE",
    "VSCODE_IPC_HOOK_CLI",
    "WEZTERM_UNIX_SOCKET",
)
"""Agents, and terminals, multiplexers and editors that others may tell what to do."""

UNSET = frozenset(
    [
        *_SOCKET_VARIABLES,
        "CONTAINERD_ADDRESS",
        "CONTAINER_HOST",
        "DBUS_SESSION_BUS_ADDRESS",
        "DBUS_SYSTEM_BUS_ADDRESS",
        "DISPLAY",
        "DOCKER_HOST",
        "GPG_AGENT_INFO",
        "NOTIFY_SOCKET",
        "PULSE_SERVER",
        "STY",
        "WAYLAND_DISPLAY",
        "XAUTHORITY",
        "XDG_RUNTIME_DIR",
    ]
)
"""Variables that name what is masked; a program that finds them set would wait for what isn't there."""

KEPT = tuple(map(Path, ("/run/current-system", "/run/wrappers", "/run/opengl-driver", "/run/booted-system")))
"""What stays of masked places: on NixOS the system's programs are found there."""

_PLACES = (
    "/run",  # docker, containerd, podman, dbus, systemd, resolved, nscd, avahi, snapd, user directories
    "/var/run",  # the same by its old name, where that is no link to it
    "/tmp/.X11-unix",  # noqa: S108 - what is hidden, not used
    "/tmp/.ICE-unix",  # noqa: S108
    "/var/lib/sss/pipes",
    "/var/lib/nscd",
    "/dev/mqueue",  # message queues: those of the host, where they have paths
)
_IN_HOME = (".gnupg", ".docker/run", ".colima", ".orbstack/run", ".screen", ".emacs.d/server")
_DIRECTORY_VARIABLES = ("XDG_RUNTIME_DIR",)

_TEMPORARY = ("TMPDIR", "TMUX_TMPDIR", "ZELLIJ_SOCKET_DIR")
_IN_TEMPORARY = re.compile(
    r"(?:tmux|tmate|zellij)-\d+|emacs\d+|u?screens|nvim\.\w+|ssh-\w{10,}|dbus-\w{8,}|(?:vscode|kitty)-[\w.-]+|mykitty|\.s\.\w+\.\d+"
)
"""Names in temporary directories. Whoever owns them: for root all are open."""

_AGENTS = ("ssh-", "agent", "com.apple")


def default_masks(environment: Mapping[str, str]) -> list[Path]:
    """Return the directories and sockets to hide from a command that would be started with *environment*; some may not exist."""
    found = [Path(place) for place in _PLACES]
    home = environment.get("HOME", "")
    if home.startswith("/"):
        found += [Path(home, place) for place in _IN_HOME]
        found += _masters(Path(home, ".ssh"))
    for name in _DIRECTORY_VARIABLES:
        if environment.get(name, "").startswith("/"):
            found.append(Path(environment[name]))
    for place in dict.fromkeys(["/tmp", *(environment.get(name, "") for name in _TEMPORARY)]):  # noqa: S108 - only looked at
        if place.startswith("/"):
            found += [Path(place, name) for name in _names(Path(place)) if _IN_TEMPORARY.fullmatch(name)]
    for name in _SOCKET_VARIABLES:
        # tmux appends numbers, kitty puts the kind of socket before it.
        path = Path(environment.get(name, "").removeprefix("unix:").partition(",")[0])
        # Some make a directory of their own for it; the socket alone is hidden where they don't.
        if path.is_absolute():
            own = path.parent.name.startswith(_AGENTS) or _IN_TEMPORARY.fullmatch(path.parent.name)
            found.append(path.parent if own else path)
    kept = [path for path in dict.fromkeys(found) if path != Path("/")]
    return [path for path in kept if not any(other in path.parents for other in kept)]


def _masters(directory: Path) -> list[Path]:
    """Return the sockets of SSH's shared connections, by which others run commands on hosts that are connected to (ssh_config(5))."""
    places = [directory, *(directory / name for name in _names(directory))]
    return [path for place in places for path in (place / name for name in _names(place)) if path.is_socket()]


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208 - names are wanted
    except OSError:
        return []
