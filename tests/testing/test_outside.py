from __future__ import annotations

import io

import pytest
import trio

from sbxproxy import CallableSource, ConfigurationError, EnvironmentSource, JsonLines, Problem, Secret, SecretError, Secrets
from sbxproxy.testing import check_observer, check_secret_source


async def test_the_built_in_sources_pass():
    await check_secret_source(EnvironmentSource("TOKEN", environ={"TOKEN": "s3cret"}), ["github"])

    async def look_up(name):
        await trio.sleep(0)
        return {"github": "s3cret"}[name]

    await check_secret_source(CallableSource(look_up), ["github"])


class Vault:
    """A source that caches under a lock, with one fault at a time."""

    def __init__(self, fault=""):
        self.fault = fault
        self.value = "s3cret"
        self.busy = False
        self.calls = 0

    def __repr__(self):
        return f"<Vault {self.value if self.fault == 'repr' else ''}>"

    async def get(self, name):
        self.calls += 1
        if name != "github":
            if self.fault == "knows all":
                return Secret(self.value)
            raise (
                KeyError(name)
                if self.fault == "foreign error"
                else SecretError(f"no {name}; had {self.value if self.fault == 'message' else ''}")
            )
        if self.busy:
            raise RuntimeError("busy")
        self.busy = self.fault in {"one at a time", "cancel"}
        try:
            await trio.lowlevel.checkpoint()
        finally:
            self.busy = self.busy and self.fault == "cancel" and self.calls > 1
        if self.fault == "str":
            return self.value
        return Secret(self.value + "\r\nx: y" if self.fault == "newline" else self.value)


async def test_a_good_source_passes():
    await check_secret_source(Vault(), ["github"], unknown="gitlab")


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("repr", "the repr of secret source Vault shows a secret"),
        ("knows all", "should not know"),
        ("foreign error", "raised KeyError"),
        ("message", "an error of .* shows a secret"),
        ("one at a time", "asked by 8 at once"),
        ("cancel", "asked by 8 at once"),
        ("str", "must return a Secret, not str"),
        ("newline", "for use in a header, raised SecretError"),
    ],
)
async def test_a_bad_source_is_caught(fault, complaint):
    with pytest.raises(AssertionError, match=complaint) as caught:
        await check_secret_source(Vault(fault), ["github"], unknown="gitlab")
    assert "s3cret" not in str(caught.value)


class Quick(Vault):
    """The same, with a value at hand."""

    def at_hand(self, name):
        if self.fault == "at hand raises":
            raise ValueError(self.value)
        if name != "github" and self.fault != "at hand knows all":
            return None
        return {"at hand str": self.value, "at hand newline": Secret("a\nb")}.get(self.fault, Secret(self.value))


async def test_a_source_with_values_at_hand_passes():
    await check_secret_source(Quick(), ["github"], unknown="gitlab")


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("at hand raises", "at_hand of secret source Quick raised ValueError"),
        ("at hand knows all", "at hand that it should not know"),
        ("at hand str", "at_hand must return a Secret or None, not str"),
        ("at hand newline", "at_hand of secret source Quick raised SecretError"),
    ],
)
async def test_a_bad_value_at_hand_is_caught(fault, complaint):
    with pytest.raises(AssertionError, match=complaint) as caught:
        await check_secret_source(Quick(fault), ["github"], unknown="gitlab")
    assert "s3cret" not in str(caught.value)


async def test_what_is_at_hand_is_told_by_a_plain_function():
    class Slow(Vault):
        async def at_hand(self, name):
            return None

    with pytest.raises(TypeError, match="at_hand must be a plain function"):
        await check_secret_source(Slow(), ["github"])
    with pytest.raises(ConfigurationError, match="at_hand is a plain function"):
        Secrets({"github": Slow()})


async def test_a_source_without_get_is_a_type_error():
    with pytest.raises(TypeError, match="get"):
        await check_secret_source(object(), ["github"])
    with pytest.raises(ValueError, match="name"):
        await check_secret_source(Vault(), [])


def test_the_json_lines_observer_passes():
    out = io.StringIO()
    observer = JsonLines(out)
    check_observer(observer, events=[Problem(sandbox="mine", flow=None, reason="x", detail="y")])
    observer.close()
    lines = out.getvalue().splitlines()
    assert len(lines) == 12
    assert '"sandbox":"mine"' in lines[-1]


class AsyncCall:
    async def __call__(self, event): ...


async def async_function(event): ...


@pytest.mark.parametrize("observer", [AsyncCall(), async_function, "no function"])
def test_an_observer_that_nothing_would_await_is_a_type_error(observer):
    with pytest.raises(TypeError, match="plain function"):
        check_observer(observer)


@pytest.mark.parametrize(
    ("observer", "complaint"),
    [
        (lambda event: event.flow, "returned int|returned"),
        (lambda event: event.nothing, "raised AttributeError"),
        (lambda event: [event], "returned list for a FlowOpened"),
    ],
)
def test_a_bad_observer_is_caught(observer, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_observer(observer)
