"""What a worker costs beside its decisions: calls of Redis, memory, and CPU time while nobody asks.

* ``calls_per_1000``: calls of Redis by the worker (all of them: syncs, look-ups, polls) per 1,000 allowed requests at
  10,000 requests/s over 100 tenants, after the leases have found their size;
* ``calls_per_1000_tail``: the same over a long tail of tenants by Zipf's law (one in 50 is 20 in 1,000);
* ``failed``, ``failed_tail``: how many of these calls Redis did not answer in time. They are made again, so where there
  are any, the machine is busy and the numbers above say little;
* ``bytes_per_key``: how much it grows with each active tenant (which has one metric and three limits) of the last
  ``keys``: of the second half, or of those that come when the memos of heads, identities and templates are full. With
  fewer than 66,000 tenants the marks of heads seen once, some ten bytes each, are in the number;
* ``memos_mib``: how much more those before took than as many of the last;
* ``idle_percent``: of one core, with all those tenants in memory and nobody asking.

The rates come from open_loop.py, without its real-time priority: it would keep Redis on its core from answering. Where
more than one request in a hundred was refused or lost there are no numbers.

    python bench/cost.py [--tenants 10000] [--rate 10000] [--seconds 6] [--json]
"""

from __future__ import annotations

import argparse
import json
import re
import time
from typing import Any

from bench import open_loop, place, report
from sidecar.gateway.heads import HEADS_MAX
from tests.servers.sidecar_dev import SidecarDev

HOT = 100
START_S = 0.5
WARM_S = 4
IDLE_S = 4


class Counted:
    """What a worker has counted so far: requests allowed, and calls of Redis by verb; ``failed`` of them were late."""

    def __init__(self, dev: SidecarDev) -> None:
        text = dev.metrics()
        self.allowed = sum(number for _, number in _series(text, "decisions", r'reason="allowed"[^}]*'))
        self.calls = dict(_series(text, "store_calls", r'verb="(\w+)"'))
        self.failed = sum(number for _, number in _series(text, "store_errors", r'verb="(\w+)"'))

    def since(self, before: Counted) -> dict[str, Any]:
        """Calls per 1,000 allowed requests, how many of which, and how many were not answered in time."""
        made = {verb: n - before.calls.get(verb, 0) for verb, n in self.calls.items() if n > before.calls.get(verb, 0)}
        allowed = self.allowed - before.allowed
        if not allowed:
            raise SystemExit("the worker counted nothing meanwhile; is the machine busy?")
        per_1000 = round(sum(made.values()) * 1_000 / allowed, 3)
        return {"per_1000": per_1000, "calls": made, "failed": self.failed - before.failed, "allowed": allowed}


def _series(text: str, name: str, labels: str) -> list[tuple[str, int]]:
    pattern = rf"^sidecar_{name}_total\{{[^}}]*?{labels}[^}}]*\}} (\S+)"
    return [(found[1], int(float(found[found.re.groups]))) for found in re.finditer(pattern, text, re.MULTILINE)]


def counted(dev: SidecarDev, rate: int, seconds: float, names: list[str], *, zipf: bool) -> dict[str, Any]:
    """One load without a pause, of which the middle counts: first leases find their size, and last they go back."""
    looks: list[Counted] = []

    def beside(elapsed_s: float) -> None:
        if elapsed_s >= START_S + WARM_S + len(looks) * seconds and len(looks) <= 1:
            looks.append(Counted(dev))

    lasting_s = START_S + WARM_S + seconds + START_S
    told = open_loop.loaded(dev.authz_port, rate, lasting_s, names, zipf=zipf, beside=beside, real_time=False)
    open_loop.check(told)
    before, after = looks
    return after.since(before)


def measure(dev: SidecarDev, tenants: int, rate: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Parts of the results: ``redis`` and ``memory``."""
    pid = place.worker(dev)
    names = place.tenants(dev, tenants)
    open_loop.warm(dev.authz_port, names[:HOT])
    hot = counted(dev, rate, seconds, names[:HOT], zipf=False)
    first = min(max(tenants // 2, HOT + HEADS_MAX), tenants - 1)
    grown = [place.memory_kib(pid)["Rss"]]
    for some in (names[HOT:first], names[first:]):
        open_loop.warm(dev.authz_port, some)
        grown.append(place.memory_kib(pid)["Rss"])
    per_key = (grown[2] - grown[1]) * 1024 / (tenants - first)
    tail = counted(dev, rate // 2, seconds, names, zipf=True)
    dev.cli("flush")
    time.sleep(2)  # leases go back
    used_us = place.cpu_us(pid)
    time.sleep(IDLE_S)
    idle = (place.cpu_us(pid) - used_us) / (IDLE_S * 10_000)
    return {
        "redis": {
            "calls_per_1000": hot["per_1000"],
            "calls_per_1000_tail": tail["per_1000"],
            "calls": hot["calls"],
            "calls_tail": tail["calls"],
            "failed": hot["failed"],
            "failed_tail": tail["failed"],
            "rate": rate,
            "rate_tail": rate // 2,
            "tenants_tail": tenants,
        },
        "memory": {
            "bytes_per_key": round(per_key),
            "memos_mib": round((grown[1] - grown[0]) / 1024 - per_key * (first - HOT) / 2**20, 1),
            "keys": tenants - first,
            "idle_percent": round(idle, 2),
        },
    }


def publish(found: dict[str, dict[str, Any]]) -> None:
    """Keep the numbers."""
    for part, numbers in found.items():
        report.publish(part, numbers)


def text(found: dict[str, dict[str, Any]]) -> str:
    """The same for people."""
    redis, memory = found["redis"], found["memory"]
    lines = []
    for name, rate, over in (
        ("", "rate", f"{HOT} tenants"),
        ("_tail", "rate_tail", f"{redis['tenants_tail']:,} by Zipf's law"),
    ):
        made = f"{redis['calls' + name]}, {redis['failed' + name]} of them not answered in time"
        lines.append(
            f"{redis['calls_per_1000' + name]} calls of Redis per 1,000 at {redis[rate]:,}/s over {over}: {made}"
        )
    lines += [
        f"{memory['bytes_per_key']} bytes per active tenant and metric ({memory['keys']:,}, with full memos)",
        f"{memory['memos_mib']} MiB of memos, which are bounded",
        f"{memory['idle_percent']} % of a core while nobody asks",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=10_000)
    parser.add_argument("--rate", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with place.installation() as dev:
        found = measure(dev, given.tenants, given.rate, given.seconds)
    publish(found)
    print(json.dumps(found) if given.json else f"{report.headline()}\n{text(found)}")


if __name__ == "__main__":
    main()
