"""The command line (extra ``cli``): ``sbxproxy run``, ``serve``, ``explain`` and the rest.

Exit codes: 0 done · 1 something isn't as it should be (findings of ``lint``, a failed step of ``demo``) · 2 wrong use or an invalid
policy · 3 ``explain``: denied. ``run`` ends as its command does: its exit code, 128 + N after signal N, 126 not executable, 127 not
found, and 125 if sbxproxy itself failed.
"""

from __future__ import annotations

__all__ = ["main"]

import gc
import sys


def main() -> None:
    """Run the command line; the ``sbxproxy`` program."""
    gc.disable()  # until there is garbage: all that is made while modules are imported is there to stay
    try:
        from sbxproxy.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in {"click", "rich"}:
            raise
        sys.exit("sbxproxy: the command line needs the extra: pip install 'sbxproxy[cli]'")
    try:
        app(prog_name="sbxproxy")
    finally:
        gc.freeze()  # what is there when the process ends needs no collecting
