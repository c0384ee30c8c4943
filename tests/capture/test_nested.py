"""A sandbox in a sandbox, as a user makes it: what the inner one lets out, the outer one judges too, and both keep their secrets."""

import os
import tempfile
from pathlib import Path

import pytest
import trio

from support.captured import NOBODY, as_user, environment
from support.island import ADDRESS, open_island
from support.origin import Origin
from support.programs import takes_root

OUTERS = ("root", "root --user", "unprivileged")
BOTH, OUTER, INNER = "both.test.example", "outer.test.example", "inner.test.example"

SBXPROXY = ["-c", "from sbxproxy.cli import main; main()", "run", "--quiet", f"--private-network={ADDRESS}/32"]

ASK = """
import sys, urllib.request
for url in sys.argv[1:]:
    try:
        print(urllib.request.urlopen(url, timeout=20).read().decode().strip())
    except OSError as error:
        print("refused")
"""


@pytest.fixture(scope="module")
def island():
    with open_island(1) as found:
        yield found


@pytest.fixture
def directory():
    with tempfile.TemporaryDirectory(prefix="sbx-nested-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture(params=OUTERS)
def outer(request):
    """The beginning of the outer sandbox's command line, its options included, and the interpreter to use inside."""
    if request.param.startswith("root"):
        takes_root()
    python = as_user("root" if request.param == "root" else "unprivileged")[-1]
    user = [f"--user={NOBODY}:{NOBODY}"] if request.param == "root --user" else []
    start = as_user("unprivileged") if request.param == "unprivileged" else [python]
    return [*start, *SBXPROXY, *user], python


async def run(island, argv, **variables):
    return await trio.run_process(
        island.inside(argv),
        env={**environment(), **variables},
        cwd="/",
        stdin=b"",
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )


async def serve(nursery, island, directory, *names):
    origin = Origin(names, listener=island.listener(0))
    await nursery.start(origin.serve)
    root = directory / "root.pem"
    root.write_bytes(origin.authority.cert_pem.bytes())
    root.chmod(0o644)
    return origin, f"--upstream-ca={root}"


@pytest.mark.parametrize("depth", [2, 3])
async def test_each_layer_injects_and_believes_the_next_one_out(outer, depth, island, directory):
    """Each inspects, so each shows a certificate of its own, that the next one in must verify as an upstream's."""
    argv, python = outer
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            origin, root = await serve(nursery, island, directory, BOTH)
            argv = [*argv, root, f"--resolve={BOTH}:{ADDRESS}"]
            for layer in range(1, depth + 1):
                argv += [f"--inject={BOTH}:X-Layer-{layer}: ${{secret:s}}", f"--secret=s=env:SECRET_{layer}", "--"]
                argv += [python, *SBXPROXY] if layer < depth else [python, "-c", ASK, f"https://{BOTH}:{origin.port}/"]
            done = await run(island, argv, **{f"SECRET_{layer}": f"of-{layer}" for layer in range(1, depth + 1)})
            nursery.cancel_scope.cancel()
    assert done.stdout == b"hello from the origin\n", done.stderr
    (seen,) = origin.requests
    assert {name.lower(): value for name, value in seen.headers if name.lower().startswith("x-layer")} == {
        f"x-layer-{layer}": f"of-{layer}" for layer in range(1, depth + 1)
    }


async def test_only_what_both_allow_gets_out(outer, island, directory):
    """Whether the inner one asks the outer one's DNS or goes to an address that it was told."""
    argv, python = outer
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            origin, root = await serve(nursery, island, directory, BOTH, OUTER, INNER)
            names = BOTH, OUTER, INNER
            answers = [f"--resolve={name}:{ADDRESS}" for name in names]
            urls = [f"https://{name}:{origin.port}/" for name in names]
            argv = [*argv, root, *answers, f"--allow={BOTH}", f"--allow={OUTER}", "--"]
            ends = []
            for told in ([], answers):
                inner = [python, *SBXPROXY, *told, f"--allow={BOTH}", f"--allow={INNER}", "--", python, "-c", ASK, *urls]
                done = await run(island, [*argv, *inner])
                ends.append(done.stdout.split(b"\n")[:-1])
            nursery.cancel_scope.cancel()
    assert ends == [[b"hello from the origin", b"refused", b"refused"]] * 2, done.stderr
    assert [seen.one("host").partition(":")[0] for seen in origin.requests] == [BOTH] * 2
