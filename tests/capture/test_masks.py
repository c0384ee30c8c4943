"""What is hidden by default."""

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
