"""Run a command, with all privileges in a network namespace of its own, behind a sandbox that captured that from outside.

As a program: orders come as JSON on standard input, what came of it goes to standard output.
"""

import json
import os
import subprocess
import sys
from functools import partial

import trio

import sbxproxy
from sbxproxy.events import DnsAnswered

GATE = 'echo; read gate && exec "$@" </dev/null'


async def main() -> None:
    orders = json.load(sys.stdin)
    answered = []

    def observe(event: sbxproxy.Event) -> None:
        if isinstance(event, DnsAnswered):
            answered.append(f"{event.type} {event.decision}")

    proxy = sbxproxy.Proxy(observers=[observe])
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    argv = ["unshare", *user, "--net", "sh", "-c", GATE, "sh", *orders["argv"]]
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        sandbox = proxy.create_sandbox("attached", policy=orders["policy"])
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            try:
                await trio.to_thread.run_sync(process.stdout.read, 1)
                await nursery.start(partial(sandbox.capture, netns=f"/proc/{process.pid}/ns/net"))
                process.stdin.write(b"go\n")
                process.stdin.close()
                output = b""
                with trio.move_on_after(orders["patience"]) as patience:
                    while orders.get("until", "\0").encode() not in output:
                        await trio.lowlevel.wait_readable(process.stdout)
                        data = os.read(process.stdout.fileno(), 4096)
                        if not data:
                            break
                        output += data
            finally:
                process.kill()
        nursery.cancel_scope.cancel()
    json.dump(
        {"output": output.decode(errors="replace"), "answered": answered, "patient": not patience.cancelled_caught}, sys.stdout
    )


if __name__ == "__main__":
    trio.run(main)
