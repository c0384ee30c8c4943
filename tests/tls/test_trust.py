"""The trust kit: which variables are set, to which file, and what is in it."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import certifi
import pytest

from sbxproxy.errors import ConfigurationError
from sbxproxy.tls import trust
from sbxproxy.tls.authority import Authority
from sbxproxy.tls.trust import LOOPBACK, bundle_pem, java_truststore, proxy_environment, system_roots, trust_environment
from support.programs import require

BUNDLE, CERTIFICATE = Path("/sbx/bundle.pem"), Path("/sbx/ca.pem")


def test_variables_that_replace_get_the_bundle_and_those_that_add_the_authority():
    """The other way round, a program would lose the system's roots, and with them all TLS that passes untouched."""
    environment = trust_environment(bundle=BUNDLE, added=CERTIFICATE)
    assert {name for name, value in environment.items() if value == str(CERTIFICATE)} == {"NODE_EXTRA_CA_CERTS"}
    assert {name for name, value in environment.items() if value == str(BUNDLE)} >= {
        "SSL_CERT_FILE",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "GIT_SSL_CAINFO",
        "PIP_CERT",
        "AWS_CA_BUNDLE",
        "CARGO_HTTP_CAINFO",
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
        "NIX_SSL_CERT_FILE",
        "DENO_CERT",
        "HTTPLIB2_CA_CERTS",
        "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
        "BUNDLE_SSL_CA_CERT",
    }
    assert {name for name, value in environment.items() if value is None} == {
        "SSL_CERT_DIR",
        "npm_config_cafile",
    }


def test_postgres_is_left_alone():
    """A root file turns libpq's sslmode=require into verify-ca, and Postgres is never terminated anyway."""
    assert "PGSSLROOTCERT" not in trust_environment(bundle=BUNDLE, added=CERTIFICATE)


def test_the_bundle_holds_the_system_and_the_authority(tmp_path):
    authority = Authority()
    path = tmp_path / "bundle.pem"
    path.write_bytes(bundle_pem(authority.certificate_pem))
    both, system = (ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) for _ in range(2))
    both.load_verify_locations(path)
    system.load_verify_locations(system_roots())
    assert len(both.get_ca_certs()) == len(system.get_ca_certs()) + 1 > 50
    assert path.read_bytes().endswith(authority.certificate_pem)


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n\r\n"])
def test_certificates_never_run_into_each_other(tmp_path, end):
    """``-----END CERTIFICATE----------BEGIN CERTIFICATE-----`` makes some readers drop two, and some all."""
    roots = tmp_path / "roots.pem"
    roots.write_bytes(Authority().certificate_pem.strip() + end)
    lines = bundle_pem(Authority().certificate_pem, roots).splitlines()
    assert lines.count(b"-----BEGIN CERTIFICATE-----") == lines.count(b"-----END CERTIFICATE-----") == 2


@pytest.mark.parametrize("content", [None, b"", b"nothing"])
def test_a_bundle_without_the_roots_is_not_made(tmp_path, content):
    roots = tmp_path / "roots.pem"
    if content is not None:
        roots.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"roots\.pem"):
        bundle_pem(Authority().certificate_pem, roots)


def test_the_systems_roots_are_found_where_distributions_keep_them(tmp_path, monkeypatch):
    """The first one that has anything in it; the environment has no say."""
    empty, full = tmp_path / "empty.pem", tmp_path / "full.pem"
    empty.touch()
    full.write_bytes(b"x")
    monkeypatch.setenv("SSL_CERT_FILE", "/elsewhere.pem")
    monkeypatch.setattr(trust, "_BUNDLES", ("/does/not/exist.pem", str(empty), str(full)))
    assert system_roots() == full
    monkeypatch.setattr(trust, "_BUNDLES", ("/does/not/exist.pem",))
    assert system_roots() == Path(certifi.where())


def test_proxy_variables_in_both_spellings():
    """Some programs read one only: curl wants ``http_proxy`` small, many others everything large."""
    environment = proxy_environment("http://127.0.0.1:8080")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        assert environment[name] == environment[name.upper()] == "http://127.0.0.1:8080"
    assert environment["no_proxy"] == environment["NO_PROXY"] == "localhost,127.0.0.1,::1" == ",".join(LOOPBACK)
    assert environment["NODE_USE_ENV_PROXY"] == "1"
    assert len(environment) == 9


def test_exemptions_can_be_chosen():
    assert proxy_environment("http://p:1", no_proxy=["a.test", "10.0.0.0/8"])["no_proxy"] == "a.test,10.0.0.0/8"
    assert proxy_environment("http://p:1", no_proxy=[])["NO_PROXY"] == ""


def test_java_reads_the_trust_store_without_a_password_and_with_the_customary_one(tmp_path):
    """Without one it skips what is encrypted in other formats, and trusts nobody."""
    java = require("java")
    store, probe = tmp_path / "cacerts", tmp_path / "Probe.java"
    store.write_bytes(java_truststore(bundle_pem(Authority().certificate_pem)))
    probe.write_text(
        "class Probe { public static void main(String[] a) throws Exception {"
        ' for (var password : new char[][] {null, "changeit".toCharArray()})'
        ' for (var type : new String[] {"JKS", "PKCS12", java.security.KeyStore.getDefaultType()}) {'
        " var store = java.security.KeyStore.getInstance(type);"
        " try (var file = new java.io.FileInputStream(a[0])) { store.load(file, password); }"
        " System.out.println(store.size()); } } }"
    )
    done = subprocess.run([java, probe, store], capture_output=True, text=True, timeout=60)
    count = system_roots().read_bytes().count(b"BEGIN CERTIFICATE") + 1
    assert done.stdout.split() == [str(count)] * 6, done.stderr


def test_a_java_trust_store_of_no_certificates_is_not_made():
    with pytest.raises(ConfigurationError, match="no certificate"):
        java_truststore(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
