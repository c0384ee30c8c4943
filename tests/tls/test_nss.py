"""The NSS database: read back and verified by NSS's own program."""

import subprocess

import pytest
import trustme

from sbxproxy.errors import ConfigurationError
from sbxproxy.tls import Authority
from sbxproxy.tls.nss import nss_database
from support.programs import require


@pytest.fixture
def certutil():
    return require("certutil")


def written(directory, pem):
    directory.mkdir()
    for name, content in nss_database(pem).items():
        (directory / name).write_bytes(content)
    return directory


def verify(certutil, directory, certificate, tmp_path):
    """Tell whether NSS accepts *certificate* for a TLS server."""
    path = tmp_path / "leaf.pem"
    path.write_bytes(certificate)
    add = [certutil, "-A", "-d", f"sql:{directory}", "-n", "leaf", "-t", ",,", "-i", str(path)]
    subprocess.run(add, check=True, capture_output=True, timeout=30)
    verify = [certutil, "-V", "-d", f"sql:{directory}", "-n", "leaf", "-u", "V", "-e"]
    return subprocess.run(verify, capture_output=True, text=True, timeout=30)


@pytest.mark.real
def test_leaves_of_each_root_are_valid_and_those_of_others_are_not(certutil, tmp_path):
    """Wherever the directory is seen: it was made elsewhere."""
    one, two, stranger = trustme.CA(), trustme.CA(), trustme.CA()
    pem = one.cert_pem.bytes() + two.cert_pem.bytes()
    for number, (authority, valid) in enumerate([(one, True), (two, True), (stranger, False)]):
        leaf = authority.issue_cert("a.example").cert_chain_pems[0].bytes()
        done = verify(certutil, written(tmp_path / str(number), pem), leaf, tmp_path)
        assert (done.returncode == 0) == valid, done.stdout + done.stderr


@pytest.mark.real
def test_the_sandbox_s_authority_is_trusted_for_servers_alone(certutil, tmp_path):
    """Neither for mail nor for code."""
    place = written(tmp_path / "db", Authority(name="job").certificate_pem)
    said = subprocess.run([certutil, "-L", "-d", f"sql:{place}"], capture_output=True, text=True, timeout=30, check=True).stdout
    assert said.strip().splitlines()[-1].split()[-1] == "C,,"
    assert {path.name for path in place.iterdir()} == {"cert9.db", "key4.db", "pkcs11.txt"}


def test_without_certutil_it_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigurationError, match="libnss3-tools"):
        nss_database(Authority().certificate_pem)


def test_what_is_no_certificate_is_refused():
    with pytest.raises(ConfigurationError, match="no certificate"):
        nss_database(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


@pytest.mark.parametrize(
    ("script", "match"),
    [("echo 'certutil: broken' >&2; exit 3", "broken"), ("exit 3", "exit code 3")],
    ids=["says-why", "says-nothing"],
)
def test_a_failure_of_certutil_is_told(monkeypatch, tmp_path, script, match):
    program = tmp_path / "certutil"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ConfigurationError, match=match):
        nss_database(Authority().certificate_pem)


def test_one_that_can_not_be_executed_is_told(monkeypatch, tmp_path):
    (tmp_path / "certutil").write_text("")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="can't be run"):
        nss_database(Authority().certificate_pem)
