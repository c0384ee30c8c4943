"""What a runtime is told to mount."""

from pathlib import Path

import pytest

from sbxproxy.errors import ConfigurationError
from sbxproxy.sandbox.identity import Identity
from sbxproxy.settings import Settings
from support.programs import require


def test_an_nss_database_is_mounted_where_it_was_asked_for(tmp_path):
    """It is the directory itself, in which NSS knows its own files; whoever reads it may be another user."""
    require("certutil")
    trust = Identity("job", Settings()).trust
    found = trust.mounts(tmp_path, nss_home=Path("/home/job"))
    assert found[Path("/home/job/.pki/nssdb")] == tmp_path
    for name in ("cert9.db", "key4.db", "pkcs11.txt"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o644
    assert Path("/home/job/.pki/nssdb") not in trust.mounts(tmp_path)


def test_without_certutil_nothing_but_the_database_is_missed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    trust = Identity("job", Settings()).trust
    with pytest.raises(ConfigurationError, match="certutil"):
        trust.mounts(tmp_path, nss_home=Path("/home/job"))
    assert trust.mounts(tmp_path)
