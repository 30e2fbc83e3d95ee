"""What a worker costs beside its decisions: calls of Redis, memory, and CPU time while nobody asks.

* ``calls_per_1000``: calls of Redis by the worker (all of them: syncs, look-ups, polls) per 1,000 allowed requests at
  10,000 requests/s over 100 tenants, after the leases have found their size;
* ``calls_per_1000_tail``: the same over a long tail of tenants by Zipf's law (one in 50 is 20 in 1,000);
* ``start_mib``: resident memory of a worker that is ready and has answered nothing yet;
* ``bytes_per_key``: how much it grows with each active tenant (which has one metric and three limits);
* ``idle_percent``: of one core, with all those tenants in memory and nobody asking.

The rates come from open_loop.py. Where more than one request in a hundred was refused or lost there are no numbers.

    python bench/cost.py [--tenants 10000] [--rate 10000] [--seconds 6] [--json]
"""

from __future__ import annotations

import argparse
import json
import re
import time
from typing import Any

from bench import latency, open_loop, place, report
from tests.servers.sidecar_dev import SidecarDev

HOT = 100
WARM_S = 4
IDLE_S = 5


def calls(dev: SidecarDev) -> dict[str, int]:
    """Calls of Redis by the worker so far, by verb."""
    text = dev.metrics()
    return {
        verb: int(float(n))
        for verb, n in re.findall(r'^sidecar_store_calls_total\{verb="(\w+)"\} (\S+)', text, re.MULTILINE)
    }


def per_1000(
    dev: SidecarDev, rate: int, seconds: float, names: list[str], *, zipf: bool
) -> tuple[float, dict[str, int]]:
    """Calls per 1,000 allowed requests, and how many of which."""
    load(dev, rate, WARM_S, names, zipf=zipf)
    before = calls(dev)
    answered = load(dev, rate, seconds, names, zipf=zipf)
    made = {verb: n - before.get(verb, 0) for verb, n in calls(dev).items() if n > before.get(verb, 0)}
    return round(sum(made.values()) * 1_000 / answered, 3), made


def load(dev: SidecarDev, rate: int, seconds: float, names: list[str], *, zipf: bool = False) -> int:
    """Requests allowed."""
    told = open_loop.loaded(dev.authz_port, rate, seconds, names, zipf=zipf)
    open_loop.check(told)
    return int(told["requests"])


def measure(tenants: int, rate: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Parts of the results: ``redis`` and ``memory``."""
    with place.installation(latency.catalogue(1_000_000_000)) as dev:
        pid = place.worker(dev)
        start = place.memory_kib(pid)
        names = place.add_tenants(dev, tenants)
        open_loop.warm(dev.authz_port, names[:HOT])
        hot, hot_made = per_1000(dev, rate, seconds, names[:HOT], zipf=False)
        before = place.memory_kib(pid)
        open_loop.warm(dev.authz_port, names)
        after = place.memory_kib(pid)
        tail, tail_made = per_1000(dev, rate // 2, seconds, names, zipf=True)
        dev.cli("flush")
        time.sleep(2)  # leases go back
        used_us = place.cpu_us(pid)
        time.sleep(IDLE_S)
        idle = (place.cpu_us(pid) - used_us) / (IDLE_S * 10_000)
    return {
        "redis": {
            "calls_per_1000": hot,
            "calls_per_1000_tail": tail,
            "calls": hot_made,
            "calls_tail": tail_made,
            "rate": rate,
            "rate_tail": rate // 2,
            "tenants_tail": tenants,
        },
        "memory": {
            "start_mib": round(start["Rss"] / 1024, 1),
            "start_anonymous_mib": round(start["Anonymous"] / 1024, 1),
            "bytes_per_key": round((after["Rss"] - before["Rss"]) * 1024 / (tenants - HOT)),
            "keys": tenants - HOT,
            "idle_percent": round(idle, 2),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=10_000)
    parser.add_argument("--rate", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = measure(given.tenants, given.rate, given.seconds)
    for part, numbers in found.items():
        report.publish(part, numbers)
    if given.json:
        print(json.dumps(found))
        return
    redis, memory = found["redis"], found["memory"]
    print(report.headline())
    for name, rate, over in (
        ("", "rate", f"{HOT} tenants"),
        ("_tail", "rate_tail", f"{given.tenants:,} by Zipf's law"),
    ):
        print(f"{redis['calls_per_1000' + name]} calls of Redis per 1,000 at {redis[rate]:,}/s over {over}", end=": ")
        print(redis["calls" + name])
    print(f"{memory['start_mib']} MiB resident at start ({memory['start_anonymous_mib']} MiB of it its own)")
    print(f"{memory['bytes_per_key']} bytes per active tenant and metric ({memory['keys']:,} of them)")
    print(f"{memory['idle_percent']} % of a core while nobody asks")


if __name__ == "__main__":
    main()
