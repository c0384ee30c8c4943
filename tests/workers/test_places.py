"""Listening sockets that outlive workers."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from sbxproxy import ConfigurationError
from sbxproxy.workers.places import Place, bind


async def test_each_worker_has_a_socket_of_its_own_on_one_address() -> None:
    for where in ("127.0.0.1:0", "[::1]:0"):
        place = Place(where, 3)
        assert len({place.descriptor(slot) for slot in range(3)}) == 3
        host, port = place.endpoint.rsplit(":", 1)
        served = 0
        clients = [socket.create_connection((host.strip("[]"), int(port))) for _ in range(30)]
        for sock in place._sockets:
            sock.setblocking(False)
            mine = 0
            while True:
                try:
                    sock.accept()[0].close()
                except BlockingIOError:
                    break
                mine += 1
            assert mine > 0
            served += mine
        assert served == 30
        for client in clients:
            client.close()
        await place.aclose()
        await place.aclose()


async def test_l1_workers_do_not_join_those_of_another_sandbox_on_its_address() -> None:
    """The listener is the identity: connections dealt to another's workers would be judged by another's policy."""
    for where in ("127.0.0.1:0", "0.0.0.0:0", "[::1]:0"):
        place = Place(where, 2)
        for count in (1, 2):
            with pytest.raises(ConfigurationError, match="in use"):
                Place(place.endpoint, count)
        await place.aclose()
        again = Place(place.endpoint, 2)
        await again.aclose()


async def test_an_address_where_others_listen_is_refused_and_nothing_stays_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        where = f"127.0.0.1:{busy.getsockname()[1]}"
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(ConfigurationError, match=where):
            await bind(["127.0.0.1:0", where], 2)
        assert len(os.listdir("/proc/self/fd")) == before


async def test_a_unix_socket_is_one_for_all_and_goes_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    place = Place(f"unix:{path}", 3)
    assert place.is_unix
    assert place.endpoint == f"unix:{path}"
    assert place.descriptor(0) == place.descriptor(2)
    await place.aclose()
    assert not path.exists()


@pytest.mark.parametrize(
    "where",
    [
        "",
        "nonsense",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:99999",
        "127.0.0.1:123456",
        "127.0.0.1:-1",
        "::1:80",
        "[127.0.0.1]:80",
        "a.example:80",
        "127.1:80",
        "1.2.3.4:0",
        "unix:/nowhere/at/all",
        "127.0.0.1:٨٠",
    ],
)
def test_what_can_not_be_listened_on_is_refused(where: str) -> None:
    with pytest.raises(ConfigurationError):
        Place(where, 2)
