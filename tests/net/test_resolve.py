"""The resolver: strict on both sides, shared, and never held up by what is stuck."""

from __future__ import annotations

import socket
import threading
from ipaddress import IPv4Address, IPv6Address

import pytest
import trio
import trio.testing

from sbxproxy.errors import ConfigurationError, UpstreamNoAddressError, UpstreamResolveError
from sbxproxy.hostname import Hostname
from sbxproxy.net.resolve import MOST_ADDRESSES, SystemResolver

ONE = IPv4Address("192.0.2.1")
TWO = IPv6Address("2001:db8::2")
NAME = Hostname("api.example.com")


def v4(text):
    return (socket.AF_INET, socket.SOCK_STREAM, 6, "", (text, 0))


def v6(text, scope=0):
    return (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (text, 0, 0, scope))


class System:
    """A ``getaddrinfo`` that runs in the real threads; names in ``stuck`` hang until ``release``."""

    def __init__(self, **answers):
        self.answers = {name.replace("_", ".").encode(): answer for name, answer in answers.items()}
        self.asked = []
        self.stuck = False
        self.running = self.most = 0
        self.gate = threading.Event()
        self.lock = threading.Lock()

    def __call__(self, name, port, **options):
        assert port is None
        assert options == {"type": socket.SOCK_STREAM, "proto": socket.IPPROTO_TCP}
        with self.lock:
            self.asked.append(name)
            self.running += 1
            self.most = max(self.most, self.running)
        if self.stuck:
            assert self.gate.wait(60)
        with self.lock:
            self.running -= 1
        answer = self.answers.get(name, [v4("192.0.2.1")])
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.fixture
def system():
    system = System()
    yield system
    system.gate.set()


async def test_addresses_come_in_the_system_s_order_without_repetition():
    system = System(api_example_com=[v6("2001:db8::2"), v4("192.0.2.1"), v6("2001:db8::2")])
    assert await SystemResolver(getaddrinfo=system).resolve(NAME) == (TWO, ONE)
    assert system.asked == [b"api.example.com"]


async def test_the_real_resolver_knows_this_host():
    assert IPv4Address("127.0.0.1") in await SystemResolver().resolve(Hostname("localhost"))


@pytest.mark.parametrize(
    "name",
    [
        "localhost\0.example.com",
        "127.1",
        "2130706433",
        "0x7f.1",
        "①27.0.0.1",
        "A.example.com",
        "a.example.com.",
        "",
    ],
)
async def test_n7_n11_what_is_no_canonical_name_never_reaches_the_system(system, name):
    """The C library cuts at the NUL and takes the others for 127.0.0.1."""
    with pytest.raises(UpstreamResolveError) as caught:
        await SystemResolver(getaddrinfo=system).resolve(Hostname(name))
    assert system.asked == []
    assert caught.value.reason == "name-not-resolved"
    assert not name or name not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([v6("::ffff:10.0.0.1")], (IPv4Address("10.0.0.1"),)),  # D1
        ([v6("fe80::1%eth0", 2), v4("192.0.2.1")], (ONE,)),  # D7
        ([v6("fe80::1", 2), v4("192.0.2.1")], (ONE,)),
        ([v4("127.1"), v4("192.0.2.1")], (ONE,)),
        ([(socket.AF_UNIX, 1, 0, "", "/tmp/x"), v4("192.0.2.1")], (ONE,)),
    ],
)
async def test_d1_d7_answers_are_read_strictly(answer, expected):
    assert await SystemResolver(getaddrinfo=System(api_example_com=answer)).resolve(NAME) == expected


@pytest.mark.parametrize("answer", [[], [v6("fe80::1", 2)], [v4("nonsense")]])
async def test_an_answer_without_a_usable_address_is_none(answer):
    with pytest.raises(UpstreamResolveError) as caught:
        await SystemResolver(getaddrinfo=System(api_example_com=answer)).resolve(NAME)
    assert (caught.value.reason, caught.value.status) == ("name-not-resolved", 502)


async def test_a_zone_with_thousands_of_addresses_is_cut():
    answer = [v4(f"192.0.{n // 256}.{n % 256}") for n in range(1000)]
    assert len(await SystemResolver(getaddrinfo=System(api_example_com=answer)).resolve(NAME)) == MOST_ADDRESSES


async def test_overrides_come_before_the_system(system):
    resolver = SystemResolver(overrides={NAME: [TWO, IPv6Address("::ffff:192.0.2.1"), ONE]}, getaddrinfo=system)
    assert await resolver.resolve(NAME) == (TWO, ONE)
    assert system.asked == []


@pytest.mark.parametrize("overrides", [{"API.example.com": [ONE]}, {"127.1": [ONE]}, {NAME: []}])
def test_wrong_overrides_are_refused_at_the_start(overrides):
    with pytest.raises(ConfigurationError):
        SystemResolver(overrides=overrides)


async def test_an_answer_is_kept_for_its_time_and_no_longer(patient_clock, system):
    resolver = SystemResolver(getaddrinfo=system, ttl=30)
    await resolver.resolve(NAME)
    start = trio.current_time()
    await trio.sleep_until(start + 29.9)
    await resolver.resolve(NAME)
    assert len(system.asked) == 1
    await trio.sleep_until(start + 30)
    await resolver.resolve(NAME)
    assert len(system.asked) == 2


@pytest.mark.parametrize(("ttl", "kept"), [(0, 1), (-5, 1), (10**9, 300)])
async def test_r5_absurd_lifetimes_are_put_within_bounds(patient_clock, system, ttl, kept):
    resolver = SystemResolver(getaddrinfo=system, ttl=ttl)
    await resolver.resolve(NAME)
    await trio.sleep(kept - 0.5)
    await resolver.resolve(NAME)
    assert len(system.asked) == 1
    await trio.sleep(0.5)
    await resolver.resolve(NAME)
    assert len(system.asked) == 2


async def test_a_name_that_does_not_exist_is_not_asked_for_again_at_once(patient_clock):
    system = System(api_example_com=socket.gaierror(socket.EAI_NONAME, "no"))
    resolver = SystemResolver(getaddrinfo=system, negative_ttl=3)
    for _ in range(3):
        with pytest.raises(UpstreamResolveError):
            await resolver.resolve(NAME)
    assert len(system.asked) == 1
    await trio.sleep(3)
    with pytest.raises(UpstreamResolveError):
        await resolver.resolve(NAME)
    assert len(system.asked) == 2


@pytest.mark.parametrize(
    "failure",
    [socket.gaierror(socket.EAI_AGAIN, "later"), OSError(5, "odd"), ValueError("odd"), MemoryError()],
)
async def test_a_failure_of_the_resolver_is_not_kept(failure):
    """It says nothing about the name."""
    system = System(api_example_com=failure)
    resolver = SystemResolver(getaddrinfo=system)
    for _ in range(2):
        with pytest.raises(UpstreamResolveError) as caught:
            await resolver.resolve(NAME)
        assert caught.value.reason == "resolver-failed"
    system.answers.clear()
    assert await resolver.resolve(NAME) == (ONE,)
    assert len(system.asked) == 3


async def test_no_negative_lifetime_means_none(system):
    system.answers[b"api.example.com"] = socket.gaierror(socket.EAI_NONAME, "no")
    resolver = SystemResolver(getaddrinfo=system, negative_ttl=0)
    for _ in range(2):
        with pytest.raises(UpstreamResolveError):
            await resolver.resolve(NAME)
    assert len(system.asked) == 2


async def test_r11_the_cache_is_bounded_and_keeps_what_is_used(system):
    resolver = SystemResolver(getaddrinfo=system, cache=3)
    names = [Hostname(f"n{n}.example.com") for n in range(4)]
    for name in names[:3]:
        await resolver.resolve(name)
    await resolver.resolve(names[0])
    await resolver.resolve(names[3])
    assert len(resolver._cache) == 3
    await resolver.resolve(names[0])
    assert len(system.asked) == 4
    await resolver.resolve(names[1])
    assert len(system.asked) == 5


async def test_callers_with_one_name_share_a_look_up(patient_clock, system):
    system.stuck = True
    resolver = SystemResolver(getaddrinfo=system)
    answers = []

    async def ask():
        answers.append(await resolver.resolve(NAME))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        system.gate.set()
    assert answers == [(ONE,)] * 20
    assert len(system.asked) == 1


async def test_a_cancelled_caller_takes_nothing_from_the_others(system):
    """Whoever came first may leave; the look-up is nobody's."""
    system.stuck = True
    resolver = SystemResolver(getaddrinfo=system)
    answers = []
    first = trio.CancelScope()

    async def leave():
        with first:
            await resolver.resolve(NAME)

    async def stay():
        answers.append(await resolver.resolve(NAME))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(stay)
        await trio.testing.wait_all_tasks_blocked()
        first.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert first.cancelled_caught
        system.gate.set()
    assert answers == [(ONE,)]


async def test_an_error_is_told_to_each_caller_as_its_own(system):
    """One exception raised in many tasks would gather everybody's traceback."""
    system.stuck = True
    system.answers[b"api.example.com"] = socket.gaierror(socket.EAI_NONAME, "no")
    resolver = SystemResolver(getaddrinfo=system)
    errors = []

    async def ask():
        try:
            await resolver.resolve(NAME)
        except UpstreamResolveError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        system.gate.set()
    assert len({id(error) for error in errors}) == 2


async def test_a_late_answer_is_there_for_the_next(patient_clock, system):
    system.stuck = True
    resolver = SystemResolver(getaddrinfo=system, timeout=10)
    with pytest.raises(UpstreamResolveError) as caught:
        await resolver.resolve(NAME)
    assert (caught.value.reason, caught.value.status) == ("resolve-timeout", 504)
    assert trio.current_time() == 10
    system.gate.set()
    assert await resolver.resolve(NAME) == (ONE,)
    assert len(system.asked) == 1


async def test_r12_stuck_look_ups_delay_no_cached_name_and_do_not_pile_up(patient_clock, system):
    resolver = SystemResolver(getaddrinfo=system, threads=4, timeout=10)
    await resolver.resolve(NAME)
    threads = threading.active_count()
    system.stuck = True
    failures = []

    async def ask(n):
        try:
            await resolver.resolve(Hostname(f"n{n}.example.com"))
        except UpstreamResolveError as error:
            failures.append((error.reason, trio.current_time()))

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for n in range(200):
            nursery.start_soon(ask, n)
        await trio.sleep(1)
        now = trio.current_time()
        assert await resolver.resolve(NAME) == (ONE,)
        assert trio.current_time() == now
    assert failures == [("resolve-timeout", start + 10)] * 200
    assert system.most == 4
    assert threading.active_count() <= threads + 4
    assert len(system.asked) == 5, "those still in line when their time was up are not asked for later"
    assert not resolver._line
    system.stuck = False
    system.gate.set()
    assert await resolver.resolve(Hostname("next.example.com")) == (ONE,)
    assert await resolver.resolve(Hostname("n0.example.com")) == (ONE,)
    with trio.fail_after(60):
        while resolver._lookups:  # the four that hung deliver what nobody waits for
            await trio.sleep(1)
    assert resolver._free == 4


async def test_those_in_line_get_their_turn(system):
    resolver = SystemResolver(getaddrinfo=system, threads=2)
    async with trio.open_nursery() as nursery:
        for n in range(30):
            nursery.start_soon(resolver.resolve, Hostname(f"n{n}.example.com"))
    assert system.most <= 2
    assert len(system.asked) == 30


async def test_x9_one_who_leaves_the_line_is_forgotten(system):
    system.stuck = True
    resolver = SystemResolver(getaddrinfo=system, threads=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(resolver.resolve, NAME)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(2):
            nursery.start_soon(resolver.resolve, Hostname("b.example.com"))
        await trio.testing.wait_all_tasks_blocked()
        assert len(resolver._line) == 1
        nursery.cancel_scope.cancel()
    assert not resolver._line
    assert set(resolver._lookups) == {NAME}, "only what a thread works on"


async def test_no_thread_to_be_had_is_a_failure_and_not_a_hang(monkeypatch, system):
    def start_thread_soon(*args, **options):
        raise RuntimeError("can't start new thread")

    resolver = SystemResolver(getaddrinfo=system, threads=1)
    with monkeypatch.context() as patch:
        patch.setattr(trio.lowlevel, "start_thread_soon", start_thread_soon)
        for _ in range(3):
            with pytest.raises(UpstreamResolveError) as caught:
                await resolver.resolve(NAME)
            assert caught.value.reason == "resolver-failed"
    assert await resolver.resolve(NAME) == (ONE,)


async def test_every_way_to_an_answer_can_be_cancelled_and_the_system_is_waited_for(system):
    resolver = SystemResolver(overrides={Hostname("fixed.example.com"): [ONE]}, getaddrinfo=system)
    with trio.testing.assert_checkpoints():
        await resolver.resolve(NAME)
    for name in ("fixed.example.com", NAME, "new.example.com"):
        with trio.CancelScope() as scope:
            scope.cancel()
            await resolver.resolve(Hostname(name))
        assert scope.cancelled_caught


def test_an_answer_after_the_event_loop_has_ended_hurts_nobody():
    system = System()
    system.stuck = True
    seen = threading.Event()

    def getaddrinfo(*args, **options):
        try:
            return system(*args, **options)
        finally:
            seen.set()

    async def main():
        with trio.move_on_after(0.05):
            await SystemResolver(getaddrinfo=getaddrinfo).resolve(NAME)

    trio.run(main)
    system.gate.set()
    assert seen.wait(10)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (socket.gaierror(socket.EAI_NONAME, "no"), UpstreamResolveError),
        (socket.gaierror(socket.EAI_NODATA, "no"), UpstreamNoAddressError),
        (socket.gaierror(socket.EAI_ADDRFAMILY, "no"), UpstreamNoAddressError),
        ([], UpstreamNoAddressError),
        ([v6("fe80::1", 2)], UpstreamNoAddressError),
    ],
)
async def test_a_name_without_addresses_is_told_from_no_name_and_again_from_the_cache(answer, kind):
    """Clients of DNS take the one as word on all names below, and the other not."""
    system = System(api_example_com=answer)
    resolver = SystemResolver(getaddrinfo=system)
    for _ in range(2):
        with pytest.raises(UpstreamResolveError) as caught:
            await resolver.resolve(NAME)
        assert (type(caught.value), caught.value.reason) == (kind, "name-not-resolved")
    assert len(system.asked) == 1


async def test_all_who_wait_for_a_name_without_addresses_are_told_that(system):
    system.answers[b"api.example.com"] = socket.gaierror(socket.EAI_NODATA, "no")
    system.stuck = True
    resolver = SystemResolver(getaddrinfo=system)
    caught = []

    async def ask():
        with pytest.raises(UpstreamNoAddressError) as error:
            await resolver.resolve(NAME)
        caught.append(error.value)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        system.gate.set()
    assert len({id(error) for error in caught}) == 3
    assert len(system.asked) == 1


async def test_what_is_known_is_what_would_be_said_at_once_and_asks_nobody(mock_clock, system):
    resolver = SystemResolver(getaddrinfo=system, overrides={Hostname("fixed.example"): [TWO, ONE]})
    assert resolver.known(Hostname("fixed.example")) == await resolver.resolve(Hostname("fixed.example"))
    assert resolver.known(NAME) is None
    assert system.asked == []
    answer = await resolver.resolve(NAME)
    assert resolver.known(NAME) == answer == (ONE,)
    mock_clock.jump(10_000)
    assert resolver.known(NAME) is None
    assert len(system.asked) == 1


async def test_a_failure_that_is_remembered_is_not_known(system):
    """It is told by raising, which whoever asks for what is known doesn't expect."""
    resolver = SystemResolver(getaddrinfo=System(api_example_com=socket.gaierror(socket.EAI_NONAME, "no such name")))
    with pytest.raises((UpstreamNoAddressError, UpstreamResolveError)):
        await resolver.resolve(NAME)
    assert resolver.known(NAME) is None
