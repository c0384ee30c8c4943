"""``run --capture=namespaces``: the command in namespaces of its own, out of which there is no way but the proxy.

Theory of operation. To import the event loop and the proxy takes longer than all else, and none of it is needed until the command makes a
connection. So the sandbox is begun first, by another process, and its identity is made meanwhile. Where by then nothing is left that
could be wrong the command is executed, and its connections wait in the listeners' queues while we import what will serve them. Should
it end before that, it needed none of it. Where something is left, as a secret to look up or a plugin to load, the command waits.
"""

from __future__ import annotations

__all__ = ["confine"]

import os
import select
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib import import_module
from pathlib import Path

from sbxproxy.capture.masks import KEPT, UNSET, default_masks
from sbxproxy.capture.plan import Plan, User, begin
from sbxproxy.capture.starting import Started
from sbxproxy.capture.unavailable import CaptureUnavailable
from sbxproxy.cli.failure import NOT_HELD, OWN_FAILURE, Failure
from sbxproxy.cli.options import Configuration, Reading, changed
from sbxproxy.cli.runtime import runtime_directory
from sbxproxy.cli.terminal import FORWARDED, own_terminal, release
from sbxproxy.errors import ConfigurationError, SbxproxyError
from sbxproxy.sandbox.identity import Identity
from sbxproxy.sandbox.trust import NSS_DATABASE

_HELD_BACK = {*FORWARDED, signal.SIGHUP}


def confine(
    configuration: Configuration,
    name: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    user: User | None,
    masks: Sequence[Path],
    over_files: bool = False,
    nss: bool = False,
) -> int:
    """Run *command*, and be its only way out; returns its exit code.

    Args:
        configuration: what the options come to.
        name: the sandbox's.
        command: the program and its arguments.
        environment: the variables that it would have without us.
        user: whom it runs as, if not as we do.
        masks: what else is hidden from it.
        over_files: whether it keeps root's rights over files.
        nss: whether it sees a certificate database of NSS in its home directory.

    Raises:
        Failure: it couldn't be run.
    """
    try:
        identity = Identity(name, configuration.settings)
        with closing(identity.trust):
            control = runtime_directory()
            terminal = own_terminal()
            variables, mounts = identity.trust.reserve(nss_home=_nss_home(environment) if nss else None)
            plan = Plan(
                argv=command,
                environment=changed(environment, {**dict.fromkeys(UNSET), **variables}),
                user=user,
                over_files=over_files,
                masks=[*default_masks(environment), *masks, control],
                keep=KEPT,
                binds=mounts,
                foreground=terminal is not None,
            )
            with closing(begin(plan)) as started:
                reading = configuration.source.examine()
                identity.trust.fill()
                return _run(configuration, reading, identity, control, started, terminal)
    except CaptureUnavailable as error:
        raise Failure(
            f"{error}\nnothing was run. `sbxproxy probe` tells more; --capture=env runs it all the same, but {NOT_HELD}",
            OWN_FAILURE,
        ) from None
    except (SbxproxyError, OSError) as error:
        raise Failure(str(error), OWN_FAILURE) from None


def _nss_home(environment: Mapping[str, str]) -> Path:
    """Return the home directory, with a place in it that a database can be mounted over: an empty one if there was none.

    Raises:
        ConfigurationError: there is no home directory, or it is another user's, where we make nothing.
    """
    home = Path(environment.get("HOME", ""))
    if not home.is_absolute() or not home.is_dir():
        raise ConfigurationError("--nss: HOME is no directory")
    place = home / NSS_DATABASE
    if not place.is_dir():
        if home.stat().st_uid != os.geteuid():
            raise ConfigurationError(f"--nss: there is no {place}, and it isn't ours to make; make it, and run this again")
        place.mkdir(mode=0o700, parents=True)
    return home


def _run(
    configuration: Configuration,
    reading: Reading,
    identity: Identity,
    control: Path,
    started: Started,
    terminal: int | None,
) -> int:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    if _settled(configuration, reading):
        started.await_sandbox()
        # From when the command may run signals are its own, and wait until there is somebody to pass them on.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
        try:
            started.go()
        except BaseException:  # nothing was run
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            raise
        try:
            with _Watch(started):
                import_module("sbxproxy.cli.attending")
        except _Ended:
            if terminal is not None:
                release(terminal, started.pid)
            return started.wait()
    from sbxproxy.cli.attending import attend_to

    return attend_to(configuration, reading, identity, control, started, terminal, mask)


def _settled(configuration: Configuration, reading: Reading) -> bool:
    """Tell whether nothing is left that could be wrong with what was asked for."""
    return not (
        reading.policy.secrets
        or reading.policy.plugins
        or configuration.plugins
        or configuration.events is not None
        or configuration.settings.extra_upstream_roots
    )


class _Ended(BaseException):
    """The command has ended; not an error, so that no import takes it for one."""


class _Watch:
    """Ends what is being imported when the command has ended: asked, as a finder, for every module that isn't there yet."""

    def __init__(self, started: Started) -> None:
        self._poll = select.poll()
        self._poll.register(started.pidfd, select.POLLIN)

    def find_spec(self, *_: object) -> None:
        """Find nothing.

        Raises:
            _Ended: the command has.
        """
        if self._poll.poll(0):
            raise _Ended

    def __enter__(self) -> None:
        sys.meta_path.insert(0, self)  # of a finder this is all that is asked

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)
