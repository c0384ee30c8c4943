"""Why this machine doesn't let us capture, and what would change that."""

from __future__ import annotations

__all__ = ["CaptureUnavailable", "remedy"]

import errno

from sbxproxy.errors import ConfigurationError

_MODULES = "it takes a kernel with nf_tables (modules nf_tables, nft_chain_nat, nft_redir, nft_ct, nft_reject_inet)"
_NAMESPACES = (
    "allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0 or "
    "an AppArmor profile with `userns,`), or run with CAP_SYS_ADMIN and CAP_NET_ADMIN; in a container, its seccomp profile must allow "
    "unshare and mount"
)
_USER_0 = "user 0 can't map itself without CAP_SETFCAP: let it have that capability, or run sbxproxy as another user"
_LIMITS = "raise the limits in /proc/sys/user: max_user_namespaces, max_net_namespaces, max_mnt_namespaces, max_pid_namespaces"
_REFUSED = frozenset({errno.EPERM, errno.EACCES})


class CaptureUnavailable(ConfigurationError):  # noqa: N818 - says what is the case
    """Capture could not be set up, so nothing was executed.

    Attributes:
        step: what was being done.
        reason: why that failed.
        remedy: what to change, or empty.
    """

    def __init__(self, step: str, reason: str, number: int = 0) -> None:
        """Take the step, the reason in words, and the kernel's error number."""
        self.step = step
        self.reason = reason
        self.remedy = remedy(step, number)
        super().__init__(f"can't capture: {step}: {reason}" + (f" ({self.remedy})" if self.remedy else ""))


def remedy(step: str, number: int) -> str:
    """Tell what would make *step* succeed where it failed with error *number*; empty if that isn't known."""
    kind, _, detail = step.partition(": ")
    if detail == "mapping user 0" and number == errno.EPERM:
        return _USER_0
    if kind in {"user namespace", "namespaces"} and number in {errno.ENOSPC, errno.EUSERS}:
        return _LIMITS
    if kind in {"user namespace", "namespaces", "mounts", "masks", "/proc", "listeners"} and number in _REFUSED:
        return _NAMESPACES
    if kind == "user namespace" and number in {errno.EINVAL, errno.ENOSYS}:
        return "it takes a kernel with user, network and process namespaces"
    if kind in {"network", "nf_tables"} and number in _REFUSED:
        return _NAMESPACES
    if kind == "nf_tables" and number in {
        errno.ENOENT,
        errno.EOPNOTSUPP,
        errno.EPROTONOSUPPORT,
        errno.EINVAL,
        errno.ECONNREFUSED,
    }:
        return _MODULES
    if kind == "network namespace" and number == errno.EPERM:
        return "run as the user who made it, or as root"
    return ""
