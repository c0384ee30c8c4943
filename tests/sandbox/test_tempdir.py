"""Temporary directories: gone with their owner, even a killed one, and never taken from one that lives."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sbxproxy.sandbox import tempdir
from sbxproxy.sandbox.tempdir import PREFIX, OwnedDirectory, sweep

OWNER = """
import sys, time
from sbxproxy.sandbox.tempdir import OwnedDirectory
directory = OwnedDirectory()
(directory.path / "ca.pem").write_text("x")
print(directory.path, flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(tempdir, "_swept", set())
    return tmp_path


def owner(place):
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(place)}
    )
    return process, Path(process.stdout.readline().strip())


def end(process, number=signal.SIGKILL):
    process.send_signal(number)
    process.wait()
    process.stdout.close()


def left(place, name="left"):
    path = place / f"{PREFIX}{name}"
    path.mkdir(mode=0o700)
    (path / "ca.pem").write_text("x")
    return path


def test_the_next_owner_removes_what_a_killed_one_left(place):
    process, path = owner(place)
    assert (path / "ca.pem").exists()
    end(process)
    assert path.exists()
    directory = OwnedDirectory()
    assert not path.exists()
    directory.close()
    assert os.listdir(place) == []


def test_what_a_living_owner_has_stays(place):
    process, path = owner(place)
    try:
        OwnedDirectory().close()
        assert (path / "ca.pem").exists()
    finally:
        end(process)


def test_what_this_process_has_stays(place):
    directory = OwnedDirectory()
    sweep(place)
    assert directory.path.exists()
    directory.close()
    directory.close()
    assert not directory.path.exists()


def test_others_may_read_it():
    """The command may run as another user."""
    directory = OwnedDirectory()
    assert directory.path.stat().st_mode & 0o777 == 0o755
    directory.close()


def test_a_link_to_a_directory_is_not_followed(place):
    target = place / "target"
    target.mkdir(mode=0o700)
    (target / "precious").write_text("x")
    link = place / f"{PREFIX}link"
    link.symlink_to(target)
    inside = left(place)
    (inside / "link").symlink_to(target)
    sweep(place)
    assert (target / "precious").exists()
    assert link.is_symlink()
    assert not inside.exists()


def test_what_was_never_ours_stays(place):
    """Of another name, with another mode, no directory, or with directories in it."""
    other = place / "sbxproxy-demo-x"
    other.mkdir(mode=0o700)
    wide = left(place, "wide")
    wide.chmod(0o777)
    file = place / f"{PREFIX}file"
    file.write_text("x")
    deep = left(place, "deep")
    (deep / "below").mkdir()
    (deep / "below" / "file").write_text("x")
    sweep(place)
    assert [other.exists(), wide.exists(), file.exists(), (deep / "below" / "file").exists()] == [True] * 4


def test_another_users_stays(root, place):
    """Only root can give a directory away."""
    theirs = left(place)
    os.chown(theirs, 65534, 65534)
    sweep(place)
    assert theirs.exists()


def test_a_place_that_is_not_there_is_no_trouble(place):
    sweep(place / "absent")


def test_it_looks_once_in_a_process(place):
    """With a thousand sandboxes in one process each would look at all the others' directories."""
    first = OwnedDirectory()
    path = left(place)
    second = OwnedDirectory()
    assert path.exists()
    first.close()
    second.close()


@pytest.mark.parametrize("moment", ["before it is opened", "before it is locked", "locked by who removes it"])
def test_one_removed_before_it_is_locked_is_made_again(place, monkeypatch, moment):
    """That is the moment at which it can't be told from a left-over."""
    real_open, real_flock, disturbed = os.open, fcntl.flock, []

    def disturb():
        if not disturbed:
            (fresh,) = place.iterdir()
            disturbed.append(fresh)
            if moment.startswith("locked"):
                disturbed.append(real_open(fresh, os.O_RDONLY))
                real_flock(disturbed[1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                fresh.rmdir()

    def opening(path, flags, *more, **options):
        if moment == "before it is opened":
            disturb()
        return real_open(path, flags, *more, **options)

    def locking(descriptor, how):
        if moment != "before it is opened":
            disturb()
        real_flock(descriptor, how)

    monkeypatch.setattr(tempdir.os, "open", opening)
    monkeypatch.setattr(tempdir.fcntl, "flock", locking)
    directory = OwnedDirectory()
    assert disturbed
    assert directory.path != disturbed[0]
    assert directory.path.is_dir()
    for descriptor in disturbed[1:]:
        os.close(descriptor)
    directory.close()


def test_it_gives_up_in_the_end(monkeypatch):
    monkeypatch.setattr(tempdir, "_lock", lambda path: None)
    with pytest.raises(FileNotFoundError, match="again and again"):
        OwnedDirectory()


def test_an_error_leaves_nothing(place, monkeypatch):
    def fail(descriptor, how):
        raise PermissionError(1, "no")

    monkeypatch.setattr(tempdir.fcntl, "flock", fail)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PermissionError):
        OwnedDirectory()
    assert os.listdir(place) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_locks_nothing_is_removed_and_it_works(place, monkeypatch):
    def fail(descriptor, how):
        raise OSError(tempdir.errno.EOPNOTSUPP, "no locks")

    monkeypatch.setattr(tempdir.fcntl, "flock", fail)
    path = left(place)
    directory = OwnedDirectory()
    assert path.exists()
    assert directory.path.exists()
    directory.close()


def test_makers_and_removers_at_once(place):
    """However they meet, whoever got a directory has it until the end."""
    stop = threading.Event()

    def remove():
        while not stop.is_set():
            sweep(place)

    removers = [threading.Thread(target=remove) for _ in range(3)]
    for remover in removers:
        remover.start()
    try:
        for _ in range(300):
            directory = OwnedDirectory()
            (directory.path / "file").write_text("x")
            os.sched_yield()
            assert (directory.path / "file").read_text() == "x"
            directory.close()
    finally:
        stop.set()
        for remover in removers:
            remover.join()
    assert os.listdir(place) == []
