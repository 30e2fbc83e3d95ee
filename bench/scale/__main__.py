"""What Redis needs for many writers, and how that grows: 10, 100 and 1,000 of them, hot tenants and a long tail.

Writers are real cores with the program's own exchange, leases and scripts, each with connections of its own; the load
is given to them directly (bench/scale/fleet.py). Their clock is moved by hand: what Redis has to do for a second of
theirs does not depend on how long this machine takes for it. Only the time of a change is measured in real time.

* ``floor``: CPU of Redis for one plain INCR per request, over one pipelined connection.

    python -m bench.scale [--quick] [--places one cluster] [--writers 10 100 1000]
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from pathlib import Path
from typing import Any

import uvloop
from redis.asyncio import Redis

from bench import report
from bench.scale import questions
from bench.scale.fleet import Fleet
from bench.scale.servers import Servers, cluster, one_server
from bench.scale.watch import Watch, watched

FLOOR_CALLS = 100_000
FLOOR_AT_ONCE = 1_000


async def floor(servers: Servers, directory: Path) -> float:
    """CPU seconds of Redis for a million INCR."""
    async with one_server(directory / "floor") as alone, Redis.from_url(alone.url, protocol=2) as client:
        before = await alone.used()
        for _ in range(FLOOR_CALLS // FLOOR_AT_ONCE):
            async with client.pipeline(transaction=False) as pipe:
                for number in range(FLOOR_AT_ONCE):
                    pipe.incr(f"tenant-{number % 100}")
                await pipe.execute()
        return (await alone.used()).since(before).cpu_s / FLOOR_CALLS * 1e6


async def ask(
    servers: Servers, directory: Path, writers: int, seconds: int, rates: tuple[int, int], watch: Watch
) -> dict[str, Any]:
    """Every question of one fleet."""
    directory.mkdir(parents=True, exist_ok=True)
    fleet = Fleet(servers.url, directory, writers, watch)
    try:
        await fleet.start()
        found: dict[str, Any] = {
            "hot": await questions.hot(fleet, servers, rates[0], seconds),
            "tail": await questions.tail(fleet, servers, rates[1] / writers, seconds),
        }
        found |= await questions.cap(fleet)
        found |= await questions.change(fleet)
        return found
    finally:
        await fleet.stop()


async def run(options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="quota-bench-") as name:
        directory = Path(name)
        for place in options.places:
            opened = {"one": one_server, "cluster": cluster}[place]
            for writers in options.writers:
                here = directory / f"{place}-{writers}"
                here.mkdir()
                async with watched() as watch, opened(here) as servers:
                    if "floor_cpu_s_per_million" not in found:
                        found["floor_cpu_s_per_million"] = round(await floor(servers, directory), 3)
                    rates = (options.hot_rate, options.tail_rate)
                    part = await ask(servers, here / "state", writers, options.seconds, rates, watch)
                found[f"{place}_{writers}"] = part
                tell(place, writers, part)
    return found


def tell(place: str, writers: int, part: dict[str, Any]) -> None:
    for kind in ("hot", "tail"):
        one = part[kind]
        print(
            f"{place:7} {writers:>5} writers {kind:4} {one['requests_per_s']:>9,} requests/s: per million allowed "
            f"{one['redis_cpu_s_per_million']:.3f} s of Redis' CPU; {one['script_calls_per_1000']:.2f} calls per 1,000"
            f", {one['script_us_per_call']:.0f} us each; {one['redis_cores']:.2f} cores",
            flush=True,
        )
    print(
        f"{place:7} {writers:>5} writers      unspent at the first refusal {part['cap_unspent_at_first_refusal']:.2%}, "
        f"used in the end {part['cap_used']:.2%}; a change is in force after {part['change_median_ms']:.0f} ms "
        f"(p99 {part['change_p99_ms']:.0f} ms)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--writers", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--seconds", type=int, default=5, help="seconds of the fleet's clock")
    parser.add_argument("--hot-rate", type=int, default=1000, help="requests a second at each writer, hot tenants")
    parser.add_argument("--tail-rate", type=int, default=2000, help="requests a second in all, long tail")
    parser.add_argument("--places", nargs="+", choices=["one", "cluster"], default=["one"], help="cluster: three nodes")
    parser.add_argument("--quick", action="store_true", help="10 writers, two seconds")
    options = parser.parse_args()
    if options.quick:
        options.writers, options.seconds = [10], 2
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(report.headline())
    report.publish("scale_quick" if options.quick else "scale", uvloop.run(run(options)))


if __name__ == "__main__":
    main()
