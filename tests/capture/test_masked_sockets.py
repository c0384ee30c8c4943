"""Sockets that do what they are told, at the places where they are by convention: out of a confined command's reach."""

import os
import socket

import pytest

from support.captured import MODES, NOBODY, as_user, environment
from support.sandboxed import run_python

PLACES = {
    "tmux": "tmp/tmux-4242/default",
    "emacs": "tmp/emacs4242/server",
    "agent": "tmp/ssh-AbCdEfGhIjKl/agent.77",
    "editor": "tmp/vscode-ipc-77.sock",
    "database": "tmp/.s.PGSQL.5432",
    "ssh": "home/.ssh/masters/host",
    "gpg": "home/.gnupg/S.gpg-agent",
    "named": "elsewhere/kitty",
}

CODE = """
import errno, json, os, socket, sys
for path in sys.argv[1:]:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(path)
            print("connected", end=" ")
        except OSError as error:
            print(errno.errorcode[error.errno], end=" ")
print("TMUX" in os.environ, "KITTY_LISTEN_ON" in os.environ)
"""


@pytest.mark.parametrize("mode", MODES)
def test_they_are_out_of_reach(mode, open_path):
    as_user(mode)
    paths = {name: open_path / place for name, place in PLACES.items()}
    open_to_all = open_path / "elsewhere" / "unusual"
    listening = []
    for path in (*paths.values(), open_to_all):
        path.parent.mkdir(parents=True, exist_ok=True)
        sock = socket.socket(socket.AF_UNIX)

        sock.bind(str(path))
        sock.listen()
        path.chmod(0o777)
        listening.append(sock)
    if mode == "unprivileged" and os.geteuid() == 0:
        for directory, _, names in os.walk(open_path):
            os.chown(directory, NOBODY, NOBODY)
            for name in names:
                os.chown(os.path.join(directory, name), NOBODY, NOBODY)
    env = {
        **environment(), "TMPDIR": str(open_path / "tmp"), "HOME": str(open_path / "home"), "TMUX": f"{paths['tmux']},77,0",
        "KITTY_LISTEN_ON": f"unix:{paths['named']}",
    }  # fmt: skip
    try:
        done = run_python(mode, "--deny-all", CODE, *map(str, (*paths.values(), open_to_all)), env=env)
    finally:
        for sock in listening:
            sock.close()
    *outcomes, tmux, kitty = done.stdout.split()
    assert outcomes.pop() == "connected", "else the others would prove nothing"
    assert "connected" not in outcomes, dict(zip(PLACES, outcomes, strict=True))
    assert set(outcomes) <= {"ENOENT", "ECONNREFUSED", "EACCES"}
    assert (tmux, kitty) == ("False", "False")
