from __future__ import annotations

import ssl

import pytest
from OpenSSL import SSL

from sbxproxy.wire.result import Hint
from sbxproxy.wire.tls import Alert, alert_record, is_hello_retry_request
from support import hello as h
from support.finality import decided_at
from support.openssl_sni import pyopenssl_answer


@pytest.mark.parametrize("alert", Alert)
def test_alerts_are_records_that_openssl_understands(alert):
    """A client that is refused before any key exists must be able to say why."""
    client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
    client.set_connect_state()
    with pytest.raises(SSL.WantReadError):
        client.do_handshake()
    client.bio_write(alert_record(alert))
    with pytest.raises(SSL.Error) as caught:
        client.do_handshake()
    if alert is not Alert.CLOSE_NOTIFY:
        wanted = alert.name.lower().replace("_", " ")
        assert any(wanted in text or f"alert number {int(alert)}" in text for *_, text in caught.value.args[0])


def test_t5_the_bytes_of_access_denied():
    assert alert_record(Alert.ACCESS_DENIED) == bytes.fromhex("15030300020231")
    assert alert_record(Alert.CLOSE_NOTIFY, fatal=False) == bytes.fromhex("15030300020100")


def test_t4_a_real_hello_retry_request_is_recognised_at_the_end_of_its_random():
    """A hello without a key share makes OpenSSL ask for another hello, in which the name may differ."""
    answer = pyopenssl_answer(h.records(h.client_hello("a.example.com", share=False)))
    assert is_hello_retry_request(answer) is True
    assert decided_at(is_hello_retry_request, answer) == 5 + 4 + 2 + 32


def test_t4_a_real_server_hello_is_not_a_retry_request():
    answer = pyopenssl_answer(h.records(h.client_hello("a.example.com")))
    assert is_hello_retry_request(answer) is False
    assert 11 <= decided_at(is_hello_retry_request, answer) <= 43


@pytest.mark.parametrize("data", [alert_record(Alert.ACCESS_DENIED), b"HTTP/1.1 400", h.records(h.client_hello())])
def test_t4_other_answers_are_no_retry_request(data):
    assert is_hello_retry_request(data) is False
    assert is_hello_retry_request(b"") is Hint.NEED_MORE


def test_t12_alerts_are_named_as_the_standard_library_names_them():
    for alert in Alert:
        assert getattr(ssl.AlertDescription, f"ALERT_DESCRIPTION_{alert.name}", alert) == alert
