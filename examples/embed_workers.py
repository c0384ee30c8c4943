"""Two processes serve one sandbox: an update has happened in both of them when it returns."""

import os

import trio

from sbxproxy.workers import Workers


async def main() -> None:
    workers = Workers(count=2, observers=[print])
    async with trio.open_nursery() as nursery:
        await nursery.start(workers.run)
        sandbox = await workers.create_sandbox("job-42", policy={"allow": ["pypi.org"]}, listen=["127.0.0.1:0"])
        environment = {k: v for k, v in {**os.environ, **sandbox.environment()}.items() if v is not None}
        await trio.run_process(["curl", "-sS", "https://example.com/"], env=environment, check=False)
        await sandbox.update_policy("deny-all")
        await trio.run_process(["curl", "-sS", "https://pypi.org/"], env=environment, check=False)
        await workers.drain(grace=5)


trio.run(main)
