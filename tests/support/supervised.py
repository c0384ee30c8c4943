"""A program with two workers and a sandbox; prints its endpoint and the workers' process ids, and stays until killed."""

import sys

import trio

from sbxproxy.workers import Workers


async def main() -> None:
    workers = Workers(count=2)
    async with trio.open_nursery() as nursery:
        await nursery.start(workers.run)
        sandbox = await workers.create_sandbox("box", policy="deny-all", listen=["127.0.0.1:0"])
        print(sandbox.endpoints[0], *workers.processes)
        sys.stdout.flush()
        await trio.sleep_forever()


trio.run(main)
