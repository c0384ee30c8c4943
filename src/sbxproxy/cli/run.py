"""``sbxproxy run``: a command behind a policy."""

from __future__ import annotations

__all__ = ["run"]

import os
import pwd
import sys
from pathlib import Path

import click

from sbxproxy.capture.plan import User
from sbxproxy.cli.options import configure, operator_options, policy_options


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@policy_options
@operator_options
@click.option(
    "--capture",
    type=click.Choice(["namespaces", "env"]),
    default="namespaces",
    show_default=True,
    help="How the command is kept to the proxy: namespaces leaves it no other way out; env sets proxy variables and hopes.",
)
@click.option("--user", metavar="NAME|UID[:GID]", help="Run the command as this user; for root.")
@click.option(
    "--root-files", is_flag=True, help="Let the command keep root's rights over files and users, as apt needs them; for root."
)
@click.option("--mask", multiple=True, metavar="PATH", help="Hide this file or directory from the command too.")
@click.option(
    "--nss", is_flag=True, help="Put a certificate database over ~/.pki/nssdb, for Chromium and its kin; takes NSS's certutil."
)
@click.option("--name", default="run", show_default=True, help="The sandbox's name, in events and in its CA certificate.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(
    ctx: click.Context,
    /,
    capture: str,
    user: str | None,
    root_files: bool,
    mask: tuple[str, ...],
    nss: bool,
    name: str,
    command: tuple[str, ...],
    **_options: object,
) -> None:
    """Run COMMAND behind a policy.

    Ends as COMMAND does: with its exit code, or 128 + N after signal N; 126 if it can't be executed, 127 if it isn't found, 125 if
    sbxproxy itself failed. Signals are passed on; SIGHUP reads the policy file again, as does every change of it.
    """
    if not command:
        raise click.UsageError("no command; write: sbxproxy run [OPTIONS] -- COMMAND [ARGUMENTS]")
    configuration = configure(ctx)
    environment = {key: value for key, value in os.environ.items() if key not in configuration.hidden}
    if capture == "env":
        if user is not None or root_files or mask or nss:
            raise click.UsageError("--user, --root-files, --mask and --nss need --capture=namespaces")
        from sbxproxy.cli.persuade import persuade

        code = persuade(configuration, name, command, environment)
    else:
        from sbxproxy.cli.confine import confine

        code = confine(
            configuration,
            name,
            command,
            environment,
            user=None if user is None else _user(user),
            over_files=root_files,
            masks=[Path(path).absolute() for path in mask],
            nss=nss,
        )
    sys.exit(code)


def _user(text: str) -> User:
    """Read whom to run as: a user's name with all of its groups, or numbers.

    Raises:
        click.UsageError: there is no such user, or we aren't root.
    """
    if os.geteuid() != 0:
        raise click.UsageError("--user: only root can run a command as another user")
    name, _, group = text.partition(":")
    try:
        if not name.isdecimal():
            entry = pwd.getpwnam(name)
            gid = int(group) if group else entry.pw_gid
            return User(uid=entry.pw_uid, gid=gid, groups=os.getgrouplist(name, gid))
        return User(uid=int(name), gid=int(group or name))
    except (KeyError, ValueError):
        raise click.UsageError(f"--user: no user is named {name!r}; write NAME, UID or UID:GID") from None
