"""The program and its commands, each imported only when it is called: ``--help`` needs no event loop and no TLS library."""

from __future__ import annotations

__all__ = ["app"]

from importlib import import_module
from typing import Any, NoReturn

import click

from sbxproxy import __version__
from sbxproxy.cli.failure import Failure
from sbxproxy.errors import SbxproxyError

_COMMANDS = {
    "run": ("sbxproxy.cli.run", "Run a command behind a policy."),
    "serve": ("sbxproxy.cli.serve", "Serve one sandbox on explicit listeners until SIGTERM."),
    "policy": ("sbxproxy.cli.policy", "Show or change the policy of a running sandbox."),
    "probe": ("sbxproxy.cli.probe", "Tell what this machine lets `run` do."),
    "explain": ("sbxproxy.cli.show", "Tell what a policy decides on a target, and why."),
    "lint": ("sbxproxy.cli.show", "Look for what a policy opens without meaning to."),
    "schema": ("sbxproxy.cli.show", "Print the JSON Schema of policies."),
    "ca": ("sbxproxy.cli.show", "Show the trust variables, or describe a CA certificate."),
    "plugins": ("sbxproxy.cli.show", "List installed plugins."),
    "demo": ("sbxproxy.cli.demo", "Show the whole story, offline."),
    "version": ("sbxproxy.cli.show", "Print the version."),
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(import_module(_COMMANDS[cmd_name][0]), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SbxproxyError as error:
            _fail(error)


def _fail(error: SbxproxyError) -> NoReturn:
    raise Failure(str(error), 2) from None


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, "--version")
def app() -> None:
    r"""Put an egress firewall round a program: policy by TLS server name, credentials that it never holds.

    \b
    sbxproxy run --allow pypi.org --allow files.pythonhosted.org -- pip download trio
    sbxproxy run --policy policy.json -- COMMAND
    """
