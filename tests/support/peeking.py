"""Filling, receiving and consuming in any order, for streams that can be peeked at."""

from __future__ import annotations

from hypothesis import strategies as st

from support.tcp import receive_all

CHUNKS = st.lists(st.binary(min_size=1, max_size=20), max_size=8)
STEPS = st.lists(st.tuples(st.sampled_from(["fill", "receive", "consume"]), st.integers(1, 12)), max_size=20)


async def check_order(stream, far, chunks, steps) -> None:
    """Send *chunks* from *far*, take *steps* at *stream*, and compare what came."""
    for chunk in chunks:
        await far.send_all(chunk)
    await far.send_eof()
    got = b""
    for what, size in steps:
        match what:
            case "fill":
                await stream.fill(size)
            case "receive":
                got += await stream.receive_some(size)
            case "consume":
                got += stream.consume(min(size, len(stream.peeked)))
    assert got + await receive_all(stream) == b"".join(chunks)
