"""``python -m benchmarks policy``: what loading a policy costs, and a decision by it, at 10, 1,000 and 100,000 domains and ranges.

No network and no event loop: this is the pure part, measured alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sbxproxy.address import IPAddress, parse_address
from sbxproxy.hostname import Hostname, canonical_hostname
from sbxproxy.policy import Boundary, Facts, Policy, Wire, judge

SIZES = (10, 1_000, 100_000)
_BOUNDARY = Boundary()


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One size's figures: load in milliseconds, decisions in microseconds each, the best of several batches."""

    size: int
    load_ms: float
    allowed_us: float
    denied_us: float
    range_us: float


def document(size: int) -> str:
    """Return a policy of *size* domains, a tenth of them wildcards, and *size* ranges, as JSON."""
    domains = [f"*.d{index}.example.com" if index % 10 == 0 else f"d{index}.example.com" for index in range(size)]
    ranges = [f"{11 + (index >> 16)}.{index >> 8 & 255}.{index & 255}.0/24" for index in range(size)]
    return json.dumps({"allow": domains, "subnets": {"allow": ranges}})


def measure(size: int, batch: int) -> Figures:
    """Load once, then decide *batch* times, five times over; every decision is about another rule."""
    text = document(size)
    started = time.perf_counter()
    policy = Policy.from_json(text)
    load = time.perf_counter() - started
    public = _address("1.2.3.4")
    picks = [index * 7919 % size for index in range(64)]
    allowed = [_facts(f"www.d{pick}.example.com" if pick % 10 == 0 else f"d{pick}.example.com", public) for pick in picks]
    denied = [_facts(f"d{pick}.example.org", public) for pick in picks]
    ranges = [_range_facts(_address(f"{11 + (pick >> 16)}.{pick >> 8 & 255}.{pick & 255}.9")) for pick in picks]

    def fastest(questions: list[Facts]) -> float:
        return (
            min(_time(lambda: [judge(policy, facts, _BOUNDARY) for facts in questions], batch // 64 or 1) for _ in range(5)) / 64
        )

    return Figures(
        size=size,
        load_ms=load * 1e3,
        allowed_us=fastest(allowed) * 1e6,
        denied_us=fastest(denied) * 1e6,
        range_us=fastest(ranges) * 1e6,
    )


def _time(call: Callable[[], object], times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - started) / times


def _address(text: str) -> IPAddress:
    address = parse_address(text)
    assert address is not None
    return address


def _name(text: str) -> Hostname:
    name = canonical_hostname(text)
    assert name is not None
    return name


def _facts(name: str, address: IPAddress) -> Facts:
    return Facts(host=_name(name), port=443, wire=Wire.TLS, server_name=_name(name), addresses=(address,))


def _range_facts(address: IPAddress) -> Facts:
    return Facts(host=address, port=443, wire=Wire.TLS, addresses=(address,))


def markdown(figures: list[Figures]) -> str:
    """Return the table."""
    lines = [
        "| domains and ranges | load, ms | allowed name, µs | denied name, µs | allowed range, µs |",
        "|--:|--:|--:|--:|--:|",
        *(
            f"| {one.size:,} | {one.load_ms:,.1f} | {one.allowed_us:.1f} | {one.denied_us:.1f} | {one.range_us:.1f} |"
            for one in figures
        ),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Measure, print a table and save it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks policy", description="Measure loading and deciding.")
    parser.add_argument("--quick", action="store_true", help="see that it works; the figures mean little")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    parser.add_argument("--size", type=int, help="this size alone, as a line of JSON")
    parser.add_argument("--batch", type=int, default=6400, help="decisions of one sample, with --size")
    options = parser.parse_args(arguments)
    if options.size is not None:
        print(json.dumps(asdict(measure(options.size, options.batch))))
        return 0
    sizes, batch = (SIZES[:2], 64) if options.quick else (SIZES, 6400)
    figures = [measure(size, batch) for size in sizes]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "policy.json").write_text(json.dumps([asdict(one) for one in figures], indent=1) + "\n")
    (options.out / "policy.md").write_text(markdown(figures))
    print(markdown(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
