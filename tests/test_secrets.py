"""A secret's value leaves through ``reveal`` and nowhere else, whichever source it comes from and however that source fails."""

import copy
import json
import logging
import math
import os
import pickle
import sys
import traceback

import pytest
import trio
import trio.testing

from sbxproxy.errors import ConfigurationError, SecretError
from sbxproxy.secrets import FRESH, CallableSource, CommandSource, EnvironmentSource, FileSource, Secret, Secrets

VALUE = "canary-5f2b91"
BAD = [
    VALUE + "\r\nx: y",
    VALUE + "\n\n",
    VALUE + "\0",
    VALUE + "é",
    VALUE + "\t",
    VALUE + "\x7f",
    VALUE + "\udcff",
    "",
    "\n",
    "a" * 16385,
]


def told(error: BaseException) -> str:
    """All that a report of *error* could show, the local variables of each frame of ours included."""
    report = traceback.TracebackException.from_exception(error, capture_locals=True)
    # The test's own frame knows the value; frames of the package must not.
    lines = [str(error), repr(error)]
    lines += [repr(frame.locals) for frame in report.stack if "sbxproxy" in frame.filename and frame.locals]
    while error.__context__ is not None:
        error = error.__context__
        lines += [str(error), repr(getattr(error, "args", ""))]
    return "\n".join(lines)


class TestSecret:
    def test_c11_it_shows_itself_in_no_way(self, caplog):
        secret = Secret(VALUE)
        logging.getLogger("test").warning("%s %r", secret, secret)
        shown = [
            repr(secret),
            str(secret),
            f"{secret}",
            f"{secret!r:>40}",
            f"{secret:>40}",
            "%s" % secret,
            str([secret]),
            str({"a": secret}),
        ]
        assert not [text for text in [*shown, caplog.text] if VALUE in text]
        assert secret.reveal() == VALUE

    def test_c11_it_is_not_pickled_nor_encoded_nor_listed_among_attributes(self):
        secret = Secret(VALUE)
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError, match="pickled"):
                pickle.dumps(secret, protocol)
        with pytest.raises(TypeError):
            json.dumps(secret)
        with pytest.raises(TypeError):
            vars(secret)
        with pytest.raises(TypeError):
            hash(secret)

    def test_c11_a_copy_is_the_same_object_so_that_no_second_value_lives_on(self):
        secret = Secret(VALUE)
        assert copy.copy(secret) is secret
        assert copy.deepcopy({"a": [secret]})["a"][0] is secret

    def test_equality_is_by_value_and_only_among_secrets(self):
        assert Secret(VALUE) == Secret(VALUE)
        assert Secret(VALUE) != Secret(VALUE + "x")
        assert Secret(VALUE) != VALUE
        assert VALUE != Secret(VALUE)

    def test_c11_comparing_what_can_not_be_encoded_raises_nothing(self):
        """An encoding error would carry the value in its ``object``."""
        assert Secret(VALUE + "\udcff") != Secret(VALUE)


class TestEnvironment:
    async def test_each_lookup_reads_the_variable_anew(self):
        environ = {"TOKEN": "one"}
        source = EnvironmentSource("TOKEN", environ)
        assert (await source.get("t")).reveal() == "one"
        environ["TOKEN"] = "two"
        assert (await source.get("t")).reveal() == "two"

    async def test_the_process_environment_is_the_default(self, monkeypatch):
        monkeypatch.setenv("SBXPROXY_TEST_TOKEN", VALUE)
        assert (await EnvironmentSource("SBXPROXY_TEST_TOKEN").get("t")).reveal() == VALUE

    async def test_a_missing_variable_is_named(self):
        with pytest.raises(SecretError, match="secret 't': environment variable TOKEN is not set"):
            await EnvironmentSource("TOKEN", {}).get("t")

    async def test_c12_its_repr_does_not_show_the_environment(self):
        assert VALUE not in repr(EnvironmentSource("TOKEN", {"TOKEN": VALUE}))

    @pytest.mark.parametrize("value", BAD)
    async def test_c3_a_value_unfit_for_a_header_is_refused_unseen(self, value):
        with pytest.raises(SecretError) as caught:
            await EnvironmentSource("TOKEN", {"TOKEN": value}).get("t")
        assert VALUE not in told(caught.value)


class TestFile:
    async def test_the_last_line_end_is_left_out_and_only_that(self, tmp_path):
        path = tmp_path / "token"
        for content, value in [(b"a b", "a b"), (b"a\n", "a"), (b"a\r\n", "a"), (b" a ", " a ")]:
            path.write_bytes(content)
            assert (await FileSource(path).get("t")).reveal() == value

    async def test_a_rewrite_is_seen_even_of_the_same_size_in_the_same_tick(self, tmp_path):
        """Two writes within one tick of the clock leave the same inode, size and modification time."""
        path = tmp_path / "token"
        path.write_text("one")
        first = path.stat().st_mtime_ns
        source = FileSource(path)
        assert (await source.get("t")).reveal() == "one"
        path.write_text("two")
        os.utime(path, ns=(first, first))
        assert (await source.get("t")).reveal() == "two"

    async def test_a_rename_onto_it_is_seen(self, tmp_path):
        path, fresh = tmp_path / "token", tmp_path / "fresh"
        path.write_text("one")
        os.utime(path, (1, 1))
        source = FileSource(path)
        assert (await source.get("t")).reveal() == "one"
        fresh.write_text("two")
        os.utime(fresh, (1, 1))
        fresh.rename(path)
        assert (await source.get("t")).reveal() == "two"

    async def test_an_unchanged_file_is_not_read_again(self, tmp_path):
        path = tmp_path / "token"
        path.write_text("one")
        os.utime(path, (1, 1))
        source = FileSource(path)
        first = await source.get("t")
        assert await source.get("t") is first

    async def test_a_removed_file_is_an_error_and_not_the_old_value(self, tmp_path):
        path = tmp_path / "token"
        path.write_text("one")
        os.utime(path, (1, 1))
        source = FileSource(path)
        await source.get("t")
        path.unlink()
        with pytest.raises(SecretError, match="No such file"):
            await source.get("t")
        path.write_text("two")
        assert (await source.get("t")).reveal() == "two"

    @pytest.mark.parametrize(
        "content", [VALUE.encode() + b"\xff", VALUE.encode() + b"\nx", b"", b"\n", b"a" * 16385, b"a" * 99999]
    )
    async def test_c3_content_unfit_for_a_header_is_refused_unseen(self, tmp_path, content):
        path = tmp_path / "token"
        path.write_bytes(content)
        source = FileSource(path)
        with pytest.raises(SecretError) as caught:
            await source.get("t")
        assert VALUE not in told(caught.value)
        assert VALUE not in repr(source)

    async def test_the_longest_is_taken(self, tmp_path):
        path = tmp_path / "token"
        path.write_bytes(b"a" * 16384 + b"\r\n")
        assert len((await FileSource(path).get("t")).reveal()) == 16384

    async def test_what_may_never_end_is_not_read(self, tmp_path):
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        for path in (pipe, tmp_path, "/dev/zero"):
            with trio.fail_after(30), pytest.raises(SecretError, match="not a regular file"):
                await FileSource(path).get("t")

    async def test_many_readers_at_once_all_get_the_value(self, tmp_path):
        path = tmp_path / "token"
        path.write_text("one")
        source, got = FileSource(path), []

        async def read():
            got.append((await source.get("t")).reveal())

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(read)
        assert got == ["one"] * 20


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


class TestCommand:
    async def test_it_prints_the_secret_and_is_run_once_per_ttl(self, tmp_path):
        count = tmp_path / "count"
        source = CommandSource(python(f"open({str(count)!r}, 'a').write('x'); print('{VALUE}')"), ttl=1000)
        assert (await source.get("t")).reveal() == VALUE
        assert (await source.get("t")).reveal() == VALUE
        assert count.read_text() == "x"
        source.ttl = 0
        source._until = 0
        await source.get("t")
        await source.get("t")
        assert count.read_text() == "xxx"

    async def test_many_at_once_run_it_once(self, tmp_path):
        count = tmp_path / "count"
        source = CommandSource(python(f"open({str(count)!r}, 'a').write('x'); print('{VALUE}')"))
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(source.get, "t")
        assert count.read_text() == "x"

    async def test_c11_a_failing_command_shows_neither_output_nor_arguments(self, capfd):
        code = f"import sys; print('{VALUE}'); print('{VALUE}', file=sys.stderr); sys.exit(3)"
        source = CommandSource(python(code))
        with pytest.raises(SecretError, match="secret 't': its command ended with 3") as caught:
            await source.get("t")
        assert VALUE not in told(caught.value) + repr(source) + "".join(capfd.readouterr())

    async def test_c3_output_unfit_for_a_header_is_refused_unseen(self):
        code = f"import sys; sys.stdout.buffer.write(b'{VALUE}\\xff')"
        with pytest.raises(SecretError, match="non-ASCII") as caught:
            await CommandSource(python(code.replace(VALUE, "canary-' b'5f2b91"))).get("t")
        assert VALUE not in told(caught.value)

    async def test_a_slow_one_is_ended(self):
        with trio.fail_after(20), pytest.raises(SecretError, match=r"took longer than 0\.2 s"):
            await CommandSource(["sleep", "1000"], timeout=0.2).get("t")

    async def test_one_that_is_not_there_is_an_error(self):
        with pytest.raises(SecretError, match="can't be started: No such file"):
            await CommandSource(["/nonexistent/command"]).get("t")

    async def test_a_failure_is_not_remembered(self, tmp_path):
        flag = tmp_path / "flag"
        source = CommandSource(["cat", str(flag)])
        with pytest.raises(SecretError):
            await source.get("t")
        flag.write_text(VALUE)
        assert (await source.get("t")).reveal() == VALUE

    async def test_it_does_not_read_our_standard_input(self):
        with trio.fail_after(30), pytest.raises(SecretError, match="empty"):
            await CommandSource(["cat"]).get("t")


class TestAtHand:
    """What is known without waiting."""

    async def test_a_literal_always_is(self):
        secrets = Secrets({"a": VALUE})
        assert secrets.at_hand("a") == Secret(VALUE)
        assert secrets.keep("a") == math.inf

    async def test_a_variable_is_while_it_is_set(self):
        environ = {"TOKEN": VALUE}
        secrets = Secrets({"a": EnvironmentSource("TOKEN", environ)})
        assert secrets.at_hand("a") == Secret(VALUE)
        assert secrets.keep("a") == FRESH
        del environ["TOKEN"]
        assert secrets.at_hand("a") is None
        assert secrets.keep("a") == 0

    async def test_a_file_is_for_a_moment_after_it_was_looked_at(self, tmp_path, autojump_clock):
        path = tmp_path / "token"
        path.write_text("one")
        os.utime(path, (1, 1))
        secrets = Secrets({"a": FileSource(path)})
        assert secrets.at_hand("a") is None
        assert await secrets.get("a") == secrets.at_hand("a") == Secret("one")
        await trio.sleep(FRESH * 0.9)
        path.write_text("two")
        os.utime(path, (1, 1))
        assert secrets.at_hand("a") == Secret("one")
        await trio.sleep(FRESH * 0.2)
        assert secrets.at_hand("a") is None
        assert trio.current_time() == pytest.approx(FRESH * 1.1)

    async def test_a_file_that_was_just_written_is_not(self, tmp_path):
        """Another write in the same tick of its clock would not show."""
        path = tmp_path / "token"
        path.write_text("one")
        secrets = Secrets({"a": FileSource(path)})
        await secrets.get("a")
        assert secrets.at_hand("a") is None

    async def test_a_removed_file_is_not_once_that_was_seen(self, tmp_path):
        path = tmp_path / "token"
        path.write_text("one")
        os.utime(path, (1, 1))
        secrets = Secrets({"a": FileSource(path)})
        await secrets.get("a")
        path.unlink()
        with pytest.raises(SecretError):
            await secrets.get("a")
        assert secrets.at_hand("a") is None

    @pytest.mark.parametrize("later", ["two", None])
    async def test_a_look_at_a_file_that_was_overtaken_is_not_kept(self, later, tmp_path):
        """One that began later saw it rotated, or gone."""

        class Slow(FileSource):
            def _read(self, kept):
                found = super()._read(kept)
                if found[1] == Secret("one"):
                    trio.from_thread.run_sync(has_read.set)
                    trio.from_thread.run(may_tell.wait)
                return found

        has_read, may_tell = trio.Event(), trio.Event()
        path = tmp_path / "token"
        path.write_text("one")
        os.utime(path, (1, 1))
        source = Slow(path)
        overtaken = []

        async def look():
            overtaken.append(await source.get("a"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await has_read.wait()
            path.unlink()
            if later is None:
                with pytest.raises(SecretError):
                    await source.get("a")
            else:
                path.write_text(later)
                os.utime(path, (1, 1))
                assert await source.get("a") == Secret(later)
            kept = source._kept
            may_tell.set()
        assert overtaken == [Secret("one")]
        assert source._kept is kept
        assert (kept is None) == (later is None)

    async def test_what_a_command_printed_is_until_it_is_too_old(self):
        source = CommandSource(python(f"print('{VALUE}')"), ttl=1000)
        secrets = Secrets({"a": source})
        assert secrets.at_hand("a") is None
        assert await secrets.get("a") == secrets.at_hand("a") == Secret(VALUE)
        source._until = trio.current_time()
        assert secrets.at_hand("a") is None

    @pytest.mark.parametrize("kind", ["file", "command"])
    def test_what_was_found_out_in_another_run_is_not(self, kind, tmp_path):
        """Each run's clock begins somewhere else, and what was to be kept for a moment could be kept for days."""
        path = tmp_path / "token"
        path.write_text(VALUE)
        os.utime(path, (1, 1))
        source = FileSource(path) if kind == "file" else CommandSource(python(f"print('{VALUE}')"))
        secrets = Secrets({"a": source})

        async def find_out():
            clock.jump(1000.0)
            return await secrets.get("a") == secrets.at_hand("a") == Secret(VALUE)

        async def look():
            return secrets.at_hand("a")

        clock = trio.testing.MockClock()
        assert trio.run(find_out, clock=clock)
        assert trio.run(look, clock=trio.testing.MockClock()) is None

    async def test_a_function_is_asked_each_time(self):
        async def function(name):
            return VALUE

        secrets = Secrets({"a": CallableSource(function)})
        await secrets.get("a")
        assert secrets.at_hand("a") is None
        assert secrets.keep("a") == 0
        assert secrets.at_hand("b") is None

    @pytest.mark.parametrize("answer", [*map(Secret, BAD), VALUE, ValueError(VALUE), None])
    async def test_c3_what_is_unfit_or_no_secret_is_left_to_the_other_way_to_refuse(self, answer):
        class Source:
            async def get(self, name):
                raise SecretError("no")

            def at_hand(self, name):
                if isinstance(answer, Exception):
                    raise answer
                return answer

        assert Secrets({"a": Source()}).at_hand("a") is None


class TestCallable:
    @pytest.mark.parametrize("value", [VALUE, Secret(VALUE)])
    async def test_it_may_return_either_kind(self, value):
        async def function(name):
            assert name == "t"
            return value

        assert (await CallableSource(function).get("t")).reveal() == VALUE

    async def test_c3_a_value_unfit_for_a_header_is_refused_unseen(self):
        async def function(name):
            return VALUE + "\r\n\r\n"

        with pytest.raises(SecretError) as caught:
            await CallableSource(function).get("t")
        assert VALUE not in told(caught.value)


class TestSecrets:
    async def test_each_name_has_its_own_source(self):
        secrets = Secrets({"a": VALUE, "b.c/d_e-1": Secret("x"), "e": EnvironmentSource("E", {"E": "y"})})
        assert [(await secrets.get(name)).reveal() for name in ("a", "b.c/d_e-1", "e")] == [VALUE, "x", "y"]
        assert secrets.names == {"a", "b.c/d_e-1", "e"}
        assert "a" in secrets
        assert "z" not in secrets

    async def test_c11_its_repr_names_names(self):
        assert repr(Secrets({"a": VALUE})) == "<Secrets a>"
        assert repr(Secrets()) == "<Secrets none>"

    @pytest.mark.parametrize("name", ["", "a b", "-a", "a}", "a\n", "ä", "a" * 129, "${x}"])
    def test_a_name_that_no_policy_can_write_is_refused(self, name):
        with pytest.raises(ConfigurationError, match="secret name"):
            Secrets({name: VALUE})

    @pytest.mark.parametrize("source", [None, 5, {"get": 1}, b"bytes", EnvironmentSource, object()])
    def test_what_is_no_source_is_refused_at_once_and_not_shown(self, source):
        """A dict has a ``get`` too, and would only fail when the first request needs it."""
        with pytest.raises(ConfigurationError, match="async def get"):
            Secrets({"a": source})

    @pytest.mark.parametrize("value", BAD)
    def test_c3_a_literal_unfit_for_a_header_is_refused_unseen(self, value):
        with pytest.raises(SecretError) as caught:
            Secrets({"a": Secret(value)})
        assert VALUE not in told(caught.value)

    async def test_an_unknown_name_is_an_error(self):
        with pytest.raises(SecretError, match="no secret is named 'b'"):
            await Secrets({"a": VALUE}).get("b")

    @pytest.mark.parametrize("answer", [VALUE, None, b"bytes"])
    async def test_a_source_that_returns_no_secret_has_failed(self, answer):
        class Wrong:
            async def get(self, name):
                return answer

        with pytest.raises(SecretError, match="secret 'a': its source failed with AttributeError") as caught:
            await Secrets({"a": Wrong()}).get("a")
        assert VALUE not in str(caught.value)

    async def test_c11_what_a_source_raises_is_not_passed_on(self):
        class Raising:
            async def get(self, name):
                raise ValueError(VALUE)

        with pytest.raises(SecretError, match="its source failed with ValueError") as caught:
            await Secrets({"a": Raising()}).get("a")
        assert VALUE not in "".join(traceback.format_exception(caught.value))

    async def test_c3_what_a_source_returns_is_checked_again(self):
        class Unchecked:
            async def get(self, name):
                return Secret(VALUE + "\nx: y")

        with pytest.raises(SecretError, match="control"):
            await Secrets({"a": Unchecked()}).get("a")

    async def test_a_cancelled_lookup_is_not_a_failed_one(self):
        class Hanging:
            async def get(self, name):
                await trio.sleep_forever()

        with trio.move_on_after(0.01) as scope:
            await Secrets({"a": Hanging()}).get("a")
        assert scope.cancelled_caught

    async def test_a_nested_table_of_secrets_is_a_source(self):
        assert (await Secrets({"a": Secrets({"a": VALUE})}).get("a")).reveal() == VALUE
