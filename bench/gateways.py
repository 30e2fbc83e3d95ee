"""What a gateway's throughput loses to real decisions, compared with a constant answer in their place.

Real Envoy and real Nginx with the configurations of this repository, one process with one thread each, and its clients
are all that runs on the first core. It asks in turn a constant answer of the bare parser and a whole sidecar, over TCP
and over a unix socket: a port for each, and the configuration behind it is the same but for whom it asks (backends.py).
Application, sidecar and Redis share the last core, where the servers go before Redis and whatever else there is.

Runs are short and come in pairs, one with the constant answer and one with decisions, each first in half of the pairs.
A pair has one ratio: what changes slowly on a machine changes both runs of a pair. The mean of the middle half of all
ratios counts, which is as deaf to single bad runs as a median and steadier; the spread is that of this half.
``cpu_ratio`` compares the gateway's own CPU time per request (a median), ``gateway_busy`` is its share of a core while
it asked the sidecar, and ``core_busy`` that of gateway and clients: below 0.9 the other core was the bottleneck.

    python bench/gateways.py [--seconds 0.1] [--pairs 31] [--connections 32] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

from bench import listener, place, report, wrk
from bench.backends import FORKED, Backend
from tests.servers.sidecar_dev import SidecarDev

WAYS = ("tcp", "unix")
WHO = ("constant", "sidecar")
# A gateway waits 200 ms for an answer; on a machine with other work that may pass without anybody's fault.
REFUSED_MAX = 0.02


class Run(NamedTuple):
    """Requests a second, microseconds of the gateway's CPU a request, and what part of the time its core was busy."""

    rate: float
    cpu_us: float
    core_busy: float


class Asked(NamedTuple):
    """A gateway as it was started: where it answers, and its processes."""

    url: str
    pids: list[int]

    def run(self, script: str, seconds: float, connections: int) -> Run:
        """Load it from its own core: what the clients need is the same whoever is asked."""
        core = place.first_core()
        began_s, idle_s, used_us = time.monotonic(), place.idle_s(core), sum(map(place.cpu_us, self.pids))
        rate, requests = wrk.drive(self.url, script, seconds, connections, refused_max=REFUSED_MAX, core=core)
        used_us = sum(map(place.cpu_us, self.pids)) - used_us
        idle = (place.idle_s(core) - idle_s) / (time.monotonic() - began_s)
        return Run(rate, used_us / requests, 1 - idle)


def measure(dev: SidecarDev, seconds: float, pairs: int, connections: int) -> dict[str, Any]:
    """For each gateway and way of asking: rates, and the ratio of decisions to the constant answer."""
    runs: dict[tuple[str, str], list[dict[str, Run]]] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(place.on_last_core())  # what reads the gateways' logs
        folder = stack.enter_context(place.folder())
        _, key = dev.new_tenant("standard")
        sidecar = stack.enter_context(place.serving(dev))
        os.sched_setaffinity(sidecar.worker, {place.last_core()})
        floor, floor_unix, upstream = (
            stack.enter_context(listener.serving("floor", core=place.last_core(), at=at))
            for at in ("", str(folder / "constant.sock"), "")
        )
        for pid in (sidecar.worker, floor.pid, floor_unix.pid, upstream.pid):
            stack.enter_context(place.alone(pid))
        backends = {
            ("constant", "tcp"): Backend(int(floor.at)),
            ("constant", "unix"): Backend(0, Path(floor_unix.at)),
            ("sidecar", "tcp"): Backend(sidecar.port),
            ("sidecar", "unix"): Backend(0, sidecar.socket),
        }
        asked: dict[tuple[str, str, str], Asked] = {}
        for kind, gateway in FORKED.items():
            own = folder / kind
            own.mkdir(mode=0o755)
            one = gateway(own, backends=list(backends.values()), upstream_port=int(upstream.at))
            one.start()
            stack.callback(one.stop)
            assert one.child is not None
            pids = [one.child.pid, *children(one.child.pid)]
            for pid in pids:
                place.pin(pid)
            for (who, way), url in zip(backends, one.urls, strict=True):
                asked[kind, who, way] = Asked(f"{url}/v1/agents/42/run?mode=fast", pids)
        script = wrk.headers({"authorization": f"Bearer {key}"})
        for one_asked in asked.values():
            one_asked.run(script, seconds, connections)
        for turn in range(pairs):
            for kind in FORKED:
                for way in WAYS:
                    order = WHO[:: -1 if turn % 2 else 1]
                    pair = {who: asked[kind, who, way].run(script, seconds, connections) for who in order}
                    runs.setdefault((kind, way), []).append(pair)
    found: dict[str, Any] = {}
    for kind in FORKED:
        part: dict[str, Any] = {way: compared(runs[kind, way]) for way in WAYS}
        found[kind] = part | {"ratio": min(part[way]["ratio"] for way in WAYS)}
    return found


def compared(pairs: list[dict[str, Run]]) -> dict[str, Any]:
    """What all pairs came to."""
    ratios = sorted(pair["sidecar"].rate / pair["constant"].rate for pair in pairs)
    quarter = len(ratios) // 4
    middle = ratios[quarter : len(ratios) - quarter]
    decided = [pair["sidecar"] for pair in pairs]
    cpu_ratio = statistics.median(pair["constant"].cpu_us / pair["sidecar"].cpu_us for pair in pairs)
    return {
        "constant_rps": round(statistics.median(pair["constant"].rate for pair in pairs)),
        "rps": round(statistics.median(run.rate for run in decided)),
        "ratio": round(statistics.fmean(middle), 3),
        "ratio_quartiles": [round(middle[0], 3), round(middle[-1], 3)],
        "gateway_busy": round(statistics.median(run.rate * run.cpu_us for run in decided) / 1_000_000, 2),
        "core_busy": round(statistics.median(run.core_busy for run in decided), 2),
        "cpu_ratio": round(cpu_ratio, 3),
    }


def children(pid: int) -> list[int]:
    """The processes that a process started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def publish(found: dict[str, Any]) -> None:
    """Keep the numbers."""
    for kind, part in found.items():
        report.publish(kind, part)


def text(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = []
    for kind, part in found.items():
        for way in WAYS:
            told = part[way]
            least, most = told["ratio_quartiles"]
            rates = f"constant {told['constant_rps']:>7,} requests/s  sidecar {told['rps']:>7,} requests/s"
            ratio = f"{told['ratio']:.2f} ({least:.2f} to {most:.2f})"
            own = f"gateway's CPU {told['cpu_ratio']:.2f}, busy {told['gateway_busy']:.0%} of {told['core_busy']:.0%}"
            lines.append(f"{kind:6} {way:5} {rates}  ratio {ratio}  {own}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.1)
    parser.add_argument("--pairs", type=int, default=31)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with place.installation() as dev:
        found = measure(dev, given.seconds, given.pairs, given.connections)
    publish(found)
    print(json.dumps(found) if given.json else f"{report.headline()}\n{text(found)}")


if __name__ == "__main__":
    main()
