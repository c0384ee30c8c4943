"""What of the host a confined command doesn't see: places whose Unix sockets lead around the proxy, and variables that name them.

A network namespace keeps abstract sockets apart, but not those with a path. Docker's gives the machine away, D-Bus and the SSH agent
act for the user, systemd-resolved and nscd resolve names. What is hidden here is where such sockets are by convention; one that
somebody put elsewhere stays in reach until its place is masked too.
"""

from __future__ import annotations

__all__ = ["KEPT", "UNSET", "default_masks"]

from collections.abc import Mapping
from pathlib import Path

UNSET = frozenset(
    [
        "CONTAINERD_ADDRESS",
        "CONTAINER_HOST",
        "DBUS_SESSION_BUS_ADDRESS",
        "DBUS_SYSTEM_BUS_ADDRESS",
        "DISPLAY",
        "DOCKER_HOST",
        "GPG_AGENT_INFO",
        "NOTIFY_SOCKET",
        "PULSE_SERVER",
        "SSH_AUTH_SOCK",
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
_IN_HOME = (".gnupg", ".docker/run", ".colima", ".orbstack/run")
_SOCKET_VARIABLES = ("SSH_AUTH_SOCK",)
_DIRECTORY_VARIABLES = ("XDG_RUNTIME_DIR",)


def default_masks(environment: Mapping[str, str]) -> list[Path]:
    """Return the directories to hide from a command that would be started with *environment*; some may not exist."""
    found = [Path(place) for place in _PLACES]
    home = environment.get("HOME", "")
    if home.startswith("/"):
        found += [Path(home, place) for place in _IN_HOME]
    for name in _DIRECTORY_VARIABLES:
        if environment.get(name, "").startswith("/"):
            found.append(Path(environment[name]))
    for name in _SOCKET_VARIABLES:
        path = Path(environment.get(name, ""))
        # Agents make a directory of their own for it; the socket alone is hidden where they don't.
        if path.is_absolute():
            found.append(path.parent if path.parent.name.startswith(("ssh-", "agent", "com.apple")) else path)
    kept = [path for path in dict.fromkeys(found) if path != Path("/")]
    return [path for path in kept if not any(other in path.parents for other in kept)]
