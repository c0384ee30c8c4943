from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbxproxy.wire.client_hello import (
    MAX_EXTENSIONS,
    MAX_HELLO_MESSAGE,
    MAX_HELLO_WIRE,
    MAX_RECORDS,
    missing_hello_bytes,
)
from sbxproxy.wire.result import Hint
from sbxproxy.wire.tls import Alert, ClientHello, Malformed, parse_client_hello, sniff_tls
from support import hello as h
from support.finality import decided_at, outcome

CAPTURED = sorted((Path(__file__).parents[1] / "data" / "hellos").glob("*.bin"))
BROWSERS_WITH_ECH = ("chrome124", "chrome131", "chrome142", "chrome150", "firefox133", "firefox144", "tor145")


def captured(name: str) -> bytes:
    return next(path for path in CAPTURED if path.stem == name).read_bytes()


def malformed(data: bytes) -> Malformed:
    answer = parse_client_hello(data)
    assert isinstance(answer, Malformed), answer
    return answer


def well_formed(data: bytes) -> ClientHello:
    answer = parse_client_hello(data)
    assert isinstance(answer, ClientHello), answer
    return answer


# -- real clients


def test_the_corpus_is_there():
    assert len(CAPTURED) >= 20
    assert {path.stem for path in CAPTURED} >= {*BROWSERS_WITH_ECH, "curl", "node", "python_ssl", "pyopenssl"}


@pytest.mark.parametrize("path", CAPTURED, ids=lambda path: path.stem)
def test_t10_hellos_of_real_clients_are_read(path):
    """GREASE, shuffled extensions, post-quantum key shares and padding are all in the corpus."""
    data = path.read_bytes()
    assert len(data) == well_formed(data).size
    assert well_formed(data).server_name == b"hello.example"


@pytest.mark.parametrize("path", CAPTURED, ids=lambda path: path.stem)
def test_t7_real_hellos_are_undecided_until_their_last_byte(path):
    data = path.read_bytes()
    assert decided_at(parse_client_hello, data) == len(data)


@pytest.mark.parametrize("name", BROWSERS_WITH_ECH)
def test_t6_encrypted_client_hello_is_no_reason_to_refuse(name):
    """Browsers always send the extension 0xfe0d, filled with noise if there is nothing to hide (RFC 9849)."""
    data = captured(name)
    assert b"\xfe\x0d" in data
    assert well_formed(data).server_name == b"hello.example"


def test_t10_a_post_quantum_hello_is_longer_than_a_segment():
    assert len(captured("firefox144")) > 1500


# -- the fields


def test_all_that_is_reported():
    data = h.records(h.client_hello("a.example.com", protocols=(b"h2", b"http/1.1"), session_id=b"s" * 32))
    assert parse_client_hello(data + b"early data") == ClientHello(
        server_name=b"a.example.com", alpn=(b"h2", b"http/1.1"), versions=(0x0304,), size=len(data)
    )


def test_t5_no_server_name_is_reported_as_none():
    assert well_formed(h.records(h.client_hello(None))).server_name is None


def test_t5_no_extensions_at_all_is_a_hello_without_a_name():
    """TLS 1.2 and older: RFC 5246 section 7.4.1.2 lets the block be absent."""
    for extensions in (None, b""):
        assert well_formed(h.records(h.hello_message(extensions))).server_name is None


@pytest.mark.parametrize("name", [b"127.0.0.1", b"A.EXAMPLE.com.", b"a b", b"nul\0nul", b"\xff", b"x" * 300])
def test_n10_names_are_reported_raw(name):
    """Whether it is a name at all is decided where names are made canonical, once."""
    assert well_formed(h.records(h.client_hello(name))).server_name == name


def test_t10_what_follows_the_last_record_is_not_looked_at():
    """Early data, or a second flight that came along; even a broken one."""
    data = h.records(h.client_hello())
    for tail in (h.records(h.client_hello("evil.example")), h.record(b""), h.record(b"x", kind=20), b"\x16"):
        assert parse_client_hello(data + tail) == parse_client_hello(data)


def test_t11_the_smallest_hello():
    data = h.records(h.hello_message(None, ciphers=b"\x13\x01"))
    assert len(data) == 5 + 4 + 41
    assert well_formed(data).size == len(data)


# -- records


@given(st.lists(st.integers(1, 300), max_size=20))
def test_t8_the_cut_into_records_does_not_matter(cuts):
    message = h.client_hello("a.example.com", protocols=(b"h2",))
    data = h.records_at(message, cuts)
    answer = well_formed(data)
    assert (answer.server_name, answer.alpn, answer.size) == (b"a.example.com", (b"h2",), len(data))


def test_t8_records_of_one_byte():
    data = h.records(captured("firefox133")[5:], 1)
    assert well_formed(data) == ClientHello(b"hello.example", (b"h2", b"http/1.1"), (772, 771), len(data))


def test_t7_t8_records_of_one_byte_are_undecided_until_the_last_byte():
    data = h.records(h.client_hello(), 1)
    assert decided_at(parse_client_hello, data) == len(data)


def test_t9_an_empty_handshake_record_is_refused_at_its_header():
    """RFC 8446 section 5.1: MUST NOT, though OpenSSL bears it."""
    message = h.client_hello()
    whole = h.record(message[:100]) + h.record(b"") + h.record(message[100:])
    assert malformed(whole).alert is Alert.UNEXPECTED_MESSAGE
    assert decided_at(parse_client_hello, whole) == 105 + 5
    assert malformed(h.record(b"")).alert is Alert.UNEXPECTED_MESSAGE


@pytest.mark.parametrize("kind", [20, 21, 23, 24, 0x80])
def test_t9_another_record_between_pieces_is_refused_at_its_type(kind):
    message = h.client_hello()
    whole = h.record(message[:100]) + h.record(b"\x01", kind=kind) + h.record(message[100:])
    assert malformed(whole).alert is Alert.UNEXPECTED_MESSAGE
    assert decided_at(parse_client_hello, whole) == 105 + 1


@pytest.mark.parametrize("kind", [20, 21, 23, 24, 0x80, 0x05, ord("G"), 0])
def test_t12_t13_another_first_record_is_not_tls(kind):
    assert parse_client_hello(bytes((kind,))) is Hint.NOT_MINE
    assert parse_client_hello(h.record(h.client_hello(), kind=kind)) is Hint.NOT_MINE


def test_t13_an_sslv2_hello_is_told_by_its_first_byte():
    """It can't name a server, and its sender waits for an answer."""
    assert parse_client_hello(bytes.fromhex("802e010301001500000010")) is Hint.NOT_MINE


@pytest.mark.parametrize("version", [0x0300, 0x0301, 0x0303, 0x0304, 0x0399, 0x03FF])
def test_t15_the_minor_record_version_is_ignored(version):
    assert well_formed(h.records(h.client_hello(), version=version)).server_name == b"a.example.com"
    mixed = h.record(h.client_hello()[:50]) + h.record(h.client_hello()[50:], version=version)
    assert well_formed(mixed).server_name == b"a.example.com"


@pytest.mark.parametrize("version", [0x0000, 0x0200, 0x0201, 0x0401, 0xFEFD])
def test_t15_the_major_record_version_is_not(version):
    assert parse_client_hello(h.records(h.client_hello(), version=version)[:2]) is Hint.NOT_MINE
    message = h.client_hello()
    later = h.record(message[:50]) + h.record(message[50:], version=version)
    assert malformed(later).alert is Alert.PROTOCOL_VERSION
    assert decided_at(parse_client_hello, later) == 55 + 2


@pytest.mark.parametrize(("version", "accepted"), [(b"\3\0", True), (b"\3\1", True), (b"\3\x99", True), (b"\2\0", False)])
def test_t15_legacy_version(version, accepted):
    data = h.records(h.hello_message(h.server_name(b"a.example"), version=version))
    if accepted:
        assert well_formed(data).server_name == b"a.example"
    else:
        assert malformed(data).alert is Alert.PROTOCOL_VERSION


# -- sizes


def test_t10_padding_up_to_the_bound():
    room = MAX_HELLO_MESSAGE - (len(h.client_hello(padding=1)) - 1) + 4
    data = h.records(h.client_hello(padding=room))
    assert int.from_bytes(h.client_hello(padding=room)[1:4], "big") == MAX_HELLO_MESSAGE
    assert well_formed(data).server_name == b"a.example.com"
    too_long = h.records(h.client_hello(padding=room + 1))
    assert malformed(too_long).alert is Alert.ILLEGAL_PARAMETER
    assert decided_at(parse_client_hello, too_long[:64]) == 5 + 4


def test_t10_at_the_bound_there_is_always_a_verdict():
    """The longest hello in as many records as are allowed, and the longest one refused."""
    message = h.client_hello(padding=MAX_HELLO_MESSAGE + 4 - len(h.client_hello(padding=1)) + 1)
    ones = MAX_RECORDS - 2
    data = h.records(message[:ones], 1) + h.records(message[ones:])
    assert well_formed(data).size == len(data) == MAX_HELLO_WIRE


def test_t10_too_many_records_are_refused():
    message = h.client_hello(padding=MAX_RECORDS)
    data = h.records(message, 1)
    assert len(data) < 64 * 1024
    assert malformed(data).problem == "the ClientHello is too large"
    assert parse_client_hello(data[: MAX_RECORDS * 6 + 4]) is Hint.NEED_MORE
    assert malformed(data[: MAX_RECORDS * 6 + 5])


def test_t11_too_many_extensions_are_refused():
    few = b"".join(h.extension(0x4000 + number, b"") for number in range(MAX_EXTENSIONS))
    assert well_formed(h.records(h.hello_message(few)))
    assert malformed(h.records(h.hello_message(few + h.extension(0x7000, b"")))).problem == "too many extensions"


# -- lies

GOOD_MESSAGE = h.client_hello("a.example.com")
# handshake header, version, random, then: session id length, ciphers' length, compression's length, extensions' length
AT_SESSION, AT_CIPHERS, AT_COMPRESSION, AT_EXTENSIONS = 38, 39, 39 + 2 + 8, 39 + 2 + 8 + 2


def patched(position: int, value: bytes, message: bytes = GOOD_MESSAGE) -> bytes:
    return h.record(message[:position] + value + message[position + len(value) :])


LIES = {
    "record-overflow": (b"\x16\x03\x01\x40\x01", 5),
    "record-overflow-far": (b"\x16\x03\x01\xff\xff", 5),
    "message-length-huge": (patched(1, bytes.fromhex("030d40")), 5 + 4),
    "message-length-tiny": (patched(1, bytes.fromhex("000028")), 5 + 4),
    "message-shorter-than-record": (patched(1, (len(GOOD_MESSAGE) - 5).to_bytes(3, "big")), 5 + 4),
    "legacy-version": (patched(4, b"\x02\x00"), 5 + 6),
    "session-id-33": (patched(AT_SESSION, b"\x21"), 5 + 39),
    "session-id-255": (patched(AT_SESSION, b"\xff"), 5 + 39),
    "ciphers-odd": (patched(AT_CIPHERS, b"\x00\x07"), 5 + 41),
    "ciphers-none": (patched(AT_CIPHERS, b"\x00\x00"), 5 + 41),
    "ciphers-overrun": (patched(AT_CIPHERS, b"\x7f\xfe"), 5 + 41),
    "compression-none": (patched(AT_COMPRESSION, b"\x00"), 5 + 50),
    "compression-overrun": (patched(AT_COMPRESSION, b"\xff"), 5 + 50),
    "compression-required": (patched(AT_COMPRESSION, b"\x01\x01"), 5 + 51),
    "extensions-short": (patched(AT_EXTENSIONS, b"\x00\x01"), 5 + 53),
    "extensions-overrun": (patched(AT_EXTENSIONS, b"\x7f\xff"), 5 + 53),
    "extension-overrun": (patched(AT_EXTENSIONS + 4, b"\x7f\xff"), 5 + 57),
    "not-a-client-hello": (patched(0, b"\x02"), 5 + 1),
}


@pytest.mark.parametrize("name", LIES)
def test_t11_lies_are_refused_by_the_field_that_tells_them(name):
    """Not a byte later: whoever waited for what a lying length promises would wait for ever."""
    data, expected = LIES[name]
    malformed(data)
    assert decided_at(parse_client_hello, data) == expected


NO_EXTENSIONS = h.hello_message(None)


@pytest.mark.parametrize("cut", range(1, len(NO_EXTENSIONS) - 4))
def test_t11_a_message_cut_short_by_its_own_length_is_refused(cut):
    """The length is honest about the bytes, but the structure inside doesn't fit."""
    body = NO_EXTENSIONS[4:-cut]
    malformed(h.record(b"\x01" + h.vector(body, 3)))


@pytest.mark.parametrize(
    ("session_id", "ciphers", "cut", "problem"),
    [
        (b"s" * 8, b"", 5, "no room for cipher suites"),
        (b"s" * 8, b"", 4, "no room for cipher suites"),
        (b"s" * 8, b"\x13\x01", 2, "no room for compression methods"),
    ],
)
def test_t11_fields_that_begin_at_the_end_are_refused(session_id, ciphers, cut, problem):
    message = h.hello_message(None, session_id=session_id, ciphers=ciphers)
    assert malformed(h.record(b"\x01" + h.vector(message[4:-cut], 3))).problem == problem


@pytest.mark.parametrize("tail", [b"\0", b"\0\0\0", b"\0\0\0\0\0"])
def test_t11_no_room_for_extensions_or_for_one(tail):
    malformed(h.record(b"\x01" + h.vector(NO_EXTENSIONS[4:] + tail, 3)))
    extensions = h.server_name(b"a.example") + tail[:3]
    assert malformed(h.records(h.hello_message(extensions))).problem == "no room for an extension"


@pytest.mark.parametrize("cut", range(1, 80))
def test_t11_extensions_cut_short_are_refused(cut):
    body = GOOD_MESSAGE[4:-cut]
    malformed(h.record(b"\x01" + h.vector(body, 3)))


def test_t11_bytes_after_the_extensions_are_refused():
    malformed(h.record(b"\x01" + h.vector(GOOD_MESSAGE[4:] + b"\0", 3)))
    malformed(h.record(b"\x01" + h.vector(GOOD_MESSAGE[4:] + b"\0\0", 3)))


@pytest.mark.parametrize("first", [1, 3, 4, 5, 100])
def test_t11_another_message_in_the_last_record_is_refused(first):
    """A second hello behind the first one, hidden in the same record."""
    data = h.record(GOOD_MESSAGE[:first]) + h.record(GOOD_MESSAGE[first:] + GOOD_MESSAGE)
    assert malformed(data).problem == "data after the ClientHello"
    decided_at(parse_client_hello, data)


def test_t11_of_two_faults_the_first_counts_however_the_bytes_come():
    """An over-long last record is known before its content, and after the faults of the records before it."""
    broken = GOOD_MESSAGE[:AT_SESSION] + b"\xff" + GOOD_MESSAGE[AT_SESSION + 1 :]
    for split in range(1, 60):
        data = h.record(broken[:split]) + h.record(broken[split:] + b"more")
        decided_at(parse_client_hello, data)
        data = h.record(broken[:split]) + h.record(b"", kind=21)
        decided_at(parse_client_hello, data)


# -- bait for readers that differ


@pytest.mark.parametrize(
    "extensions",
    [
        h.server_name(b"a.example") + h.server_name(b"evil.example"),
        h.extension(0, h.vector(b"\0" + h.vector(b"a.example") + b"\0" + h.vector(b"evil.example"))),
        h.extension(0, h.vector(b"\1" + h.vector(b"evil.example") + b"\0" + h.vector(b"a.example"))),
        h.server_name(b"a.example", name_type=1),
        h.extension(0, h.vector(b"\0" + h.vector(b"a.example")) + b"junk"),
        h.extension(0, h.vector(b"\0" + h.vector(b"a.example") + b"junk")),
        h.extension(0, b"\x00\x0f" + b"\0" + h.vector(b"a.example")),
        h.extension(0, h.vector(b"\0\x00\xffa.example")),
        h.extension(0, b""),
        h.extension(0, b"\0\0"),
        h.extension(0, h.vector(b"\0\0\0")),
    ],
    ids=[
        "two-extensions", "two-names", "other-type-first", "other-type", "junk-behind-list", "junk-in-list",
        "list-longer-than-body", "name-longer-than-list", "empty", "empty-list", "empty-name",
    ],
)  # fmt: skip
def test_t14_ambiguous_server_names_are_refused(extensions):
    data = h.records(h.hello_message(extensions))
    assert malformed(data).alert in {Alert.DECODE_ERROR, Alert.ILLEGAL_PARAMETER}
    decided_at(parse_client_hello, data)


@pytest.mark.parametrize("kind", [0x0A0A, 13, 41, 0xFE0D])
def test_t14_any_extension_twice_is_refused(kind):
    twice = h.extension(kind, b"\0") + h.server_name(b"a.example") + h.extension(kind, b"\0")
    malformed(h.records(h.hello_message(twice)))


def test_t14_pre_shared_key_is_last_or_refused():
    """RFC 8446 section 4.2.11: the binders cover all that precedes them."""
    psk, name = h.extension(41, b"\0\0"), h.server_name(b"a.example")
    assert well_formed(h.records(h.hello_message(name + psk))).server_name == b"a.example"
    assert malformed(h.records(h.hello_message(psk + name))).alert is Alert.ILLEGAL_PARAMETER


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0\0",
        b"\0\1\0",
        b"\0\3\2h2\0",
        b"\0\2\2h",
        b"\0\4\2h2",
        b"\0\5\2h2\2h",
        b"\0\4\2h2\0",
        b"\0\2\2h2",
    ],
)
def test_t11_malformed_alpn_is_refused(body):
    malformed(h.records(h.hello_message(h.server_name(b"a.example") + h.extension(16, body))))


@pytest.mark.parametrize("body", [b"", b"\0", b"\2\3", b"\3\3\4\3", b"\2\3\4\3", b"\4\3\4", b"\1\3\4"])
def test_t11_malformed_supported_versions_are_refused(body):
    malformed(h.records(h.hello_message(h.server_name(b"a.example") + h.extension(43, body))))


@pytest.mark.parametrize("kind", [0x0A0A, 0xFAFA, 0xFE0D, 57, 0x1234])
@pytest.mark.parametrize("body", [b"", b"\0", b"\xff" * 500])
def test_t6_unknown_extensions_may_hold_anything(kind, body):
    """GREASE (RFC 8701) sends reserved types with any body, to keep readers tolerant."""
    data = h.records(h.hello_message(h.extension(kind, body) + h.server_name(b"a.example")))
    assert well_formed(data).server_name == b"a.example"


# -- finality, whatever the bytes


@given(st.data())
def test_t11_mutated_hellos_never_crash_and_never_change_their_answer(data):
    message = h.client_hello("a.example.com", protocols=(b"h2",))
    raw = bytearray(h.records_at(message, data.draw(st.lists(st.integers(1, len(message)), max_size=4))))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    final = outcome(parse_client_hello, bytes(raw))
    if final is not Hint.NEED_MORE:
        decided_at(parse_client_hello, bytes(raw))
    else:
        assert all(parse_client_hello(prefix) is Hint.NEED_MORE for prefix in h.prefixes(bytes(raw)))


@given(st.binary(max_size=200))
def test_t16_junk_behind_a_tls_header_is_never_accepted(junk):
    assert not isinstance(parse_client_hello(b"\x16\x03\x01" + junk), ClientHello)
    for data in (junk, b"\x16\x03\x01" + junk):
        if outcome(parse_client_hello, data) is not Hint.NEED_MORE:
            decided_at(parse_client_hello, data)


# -- pacing


@pytest.mark.parametrize("size", [1, 7, 1000, 16384])
def test_t18_waiting_for_the_missing_bytes_never_overshoots_and_takes_few_looks(size):
    """Looks, not bytes, cost: a hello in records of one byte must not be read from its start at each of them."""
    data = h.records(captured("firefox144")[5:], size)
    have = looks = 0
    while parse_client_hello(data[:have]) is Hint.NEED_MORE:
        have += missing_hello_bytes(data[:have])
        looks += 1
        assert have <= len(data)
    assert have == len(data)
    assert looks < 80


def test_t18_at_least_one_byte_is_always_missing():
    assert missing_hello_bytes(b"") == 1
    assert all(missing_hello_bytes(prefix) >= 1 for prefix in h.prefixes(h.records(GOOD_MESSAGE)))


def test_the_sniffer_says_the_same():
    good = sniff_tls(h.records(h.client_hello("a.example.com", protocols=(b"h2",))))
    assert (good.wire, good.server_name, good.alpn, good.problem) == ("tls", b"a.example.com", (b"h2",), None)
    bad = sniff_tls(b"\x16\x03\x01\xff\xff")
    assert (bad.wire, bad.server_name, bad.problem) == ("tls", None, "record is too long")
    assert sniff_tls(b"\x16") is Hint.NEED_MORE
    assert sniff_tls(b"G") is Hint.NOT_MINE
