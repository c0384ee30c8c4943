"""What is hidden by default."""

import socket
from pathlib import Path

from sbxproxy.capture.masks import UNSET, default_masks


def masked(**environment):
    return set(map(str, default_masks(environment)))


def test_where_daemons_have_their_sockets():
    assert {"/run", "/tmp/.X11-unix", "/tmp/.ICE-unix"} <= masked()


def test_the_user_s_own():
    assert {"/home/x/.gnupg", "/home/x/.docker/run"} <= masked(HOME="/home/x")


def test_an_agent_s_directory_or_else_its_socket():
    assert "/tmp/ssh-abc" in masked(SSH_AUTH_SOCK="/tmp/ssh-abc/agent.1")
    assert "/home/x/agent.sock" in masked(SSH_AUTH_SOCK="/home/x/agent.sock")


def test_never_everything():
    """Odd values must not hide the whole system."""
    for odd in ("", "/", "relative", "/x"):
        assert "/" not in masked(HOME=odd, XDG_RUNTIME_DIR=odd, SSH_AUTH_SOCK=odd)


def test_what_is_inside_another_is_not_masked_twice():
    assert "/run/user/1000" not in masked(XDG_RUNTIME_DIR="/run/user/1000")
    assert "/elsewhere" in masked(XDG_RUNTIME_DIR="/elsewhere")


def test_paths_and_variables_are_what_they_seem():
    assert all(isinstance(path, Path) and path.is_absolute() for path in default_masks({"HOME": "/h"}))
    assert {"SSH_AUTH_SOCK", "DBUS_SESSION_BUS_ADDRESS", "DOCKER_HOST"} <= UNSET


def test_multiplexers_and_editors_that_do_what_they_are_told(tmp_path):
    """By tmux's socket one types into a shell that nothing confines; by Emacs' one evaluates Lisp."""
    names = ["tmux-1000", "emacs1000", "zellij-1000", "screens", "nvim.x", "ssh-AbCdEfGhIj", "vscode-ipc-1.sock", ".s.PGSQL.5432"]
    others = ["emacs-29.tar", "ssh-keys", "tmux-src", "project", "screenshots"]
    for name in (*names, *others):
        (tmp_path / name).mkdir()
    found = masked(TMPDIR=str(tmp_path))
    assert {name for name in (*names, *others) if str(tmp_path / name) in found} == set(names)


def test_sockets_that_variables_name():
    assert "/tmp/tmux-1000" in masked(TMUX="/tmp/tmux-1000/default,1234,0")
    assert "/home/x/sock" in masked(TMUX="/home/x/sock,1234,0")
    assert "/tmp/mine" in masked(KITTY_LISTEN_ON="unix:/tmp/mine")
    assert "/home/x/code.sock" in masked(VSCODE_IPC_HOOK_CLI="/home/x/code.sock")
    assert not {path for path in masked(KITTY_LISTEN_ON="unix:@abstract") if "abstract" in path}
    assert {"TMUX", "STY", "NVIM", "VSCODE_IPC_HOOK_CLI"} <= UNSET


def test_connections_that_ssh_shares(tmp_path):
    """Keys stay: whether they may be used is a matter of where connections may lead."""
    (tmp_path / ".ssh" / "masters").mkdir(parents=True)
    (tmp_path / ".ssh" / "id_ed25519").touch()
    made = [tmp_path / ".ssh" / "cm-1", tmp_path / ".ssh" / "masters" / "2"]
    for path in made:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
    assert {path for path in masked(HOME=str(tmp_path)) if ".ssh" in path} == set(map(str, made))
