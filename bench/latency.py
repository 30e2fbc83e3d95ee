"""How long the slowest decisions take at half of the maximum rate, while everything happens that happens in a day.

steady.py brings the load, and open_loop.py samples it: a few thousand requests a second at random times, each latency
counted from when the request was due. Measures:

* ``floor``: the same load on a constant answer of the same parser: what the machine and the generator bring themselves;
* ``busy``: decisions over a hundred tenants, of ten thousand that the worker knows, while metrics are scraped twice a
  second, leases are renewed, usage is reported and flushed, the garbage is collected, and a changed catalogue is
  applied, which publishes all ten thousand tenants anew;
* ``quiet``: the same when nothing but the load goes on;
* ``outage``: the same after Redis was stopped and the breaker opened.

The last three in turns, of which the medians count, each at half of what wrk reached right before: a machine that is
shared may need half as much CPU again for everything, for seconds at a time, and what was half of its rate is then most
of it. Where more than one request in a hundred was refused or lost there are no numbers. ``--stall`` stops the
constant answer's server for 20 ms in every second instead: a measure of tails has to show that.

    python bench/latency.py [--seconds 9] [--tenants 10000] [--rate 0] [--stall] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from bench import listener, open_loop, place, report, steady, wrk
from tests.servers.sidecar_dev import SidecarDev

HOT = 100
SAMPLES = 2_000
STALL_S = 0.02
STALLED_RATE = 40_000
SCRAPE_S = 0.5
RELOAD_AT_S = 0.3
SETTLE_S = 0.7
RATE_S = 0.5
TURNS = 4
QUIET = 0.35  # of a turn, as long as the busy part
COUNTED = ("requests", "refused", "lost")


class Day:
    """What goes on beside the load; ``catalogue`` is applied in it."""

    def __init__(self, dev: SidecarDev, catalogue: str) -> None:
        self._dev = dev
        self._scrape_at_s = 0.0
        self._catalogue = catalogue
        self._reloaded = False

    def goes_on(self, elapsed_s: float) -> None:
        """Called every few milliseconds."""
        if elapsed_s >= self._scrape_at_s:
            self._scrape_at_s += SCRAPE_S
            with urllib.request.urlopen(f"{self._dev.at.ops}/metrics", timeout=10) as answer:
                answer.read()
        if elapsed_s >= RELOAD_AT_S and not self._reloaded:
            self._reloaded = True
            (self._dev.state.parent / "catalogue.yaml").write_text(self._catalogue)


def sampled(port: int, seconds: float, hot: list[str], beside: Callable[[float], None] | None = None) -> dict[str, Any]:
    """Percentiles of the samples alone, which are SAMPLES a second for so many seconds."""
    told = open_loop.loaded(port, SAMPLES, seconds, hot, poisson=True, beside=beside)
    open_loop.check(told)
    return told


def loaded(
    port: int, rate: int, seconds: float, hot: list[str], beside: Callable[[float], None] | None = None
) -> dict[str, Any]:
    """Percentiles of the samples, which are part of the rate."""
    with steady.load(port, rate - SAMPLES, hot) as load:
        told = sampled(port, seconds, hot, beside)
    return told | {"rate": round(load.rate) + SAMPLES}


def half(dev: SidecarDev, hot: list[str]) -> int:
    """Half of the requests a second that wrk reaches now."""
    most, _ = wrk.drive(
        f"{dev.at.authz}/", steady.script(hot), RATE_S, open_loop.CONNECTIONS, refused_max=open_loop.LOST_MAX
    )
    return int(most / 2)


def measure(dev: SidecarDev, seconds: float, tenants: int, rate: int) -> dict[str, Any]:
    """Percentiles of every mode, at ``rate`` or else half of what wrk reaches."""
    with place.on_last_core():
        names = place.tenants(dev, tenants)
        hot = names[:HOT]
        # Every tenant is in the worker's memory from here on.
        open_loop.warm(dev.authz_port, names)
        time.sleep(SETTLE_S)  # until Redis has been told of all of them
        with listener.serving("floor") as server, place.alone(server.pid):
            found = {"floor": loaded(int(server.at), rate or half(dev, hot), seconds / TURNS, hot)}
        turns: list[dict[str, dict[str, Any]]] = []
        for number in range(TURNS):
            day = Day(dev, place.catalogue(place.BURST + 1 + number))
            turns.append(turn(dev, day, seconds / TURNS, rate or half(dev, hot), hot, tenants))
        found |= {mode: middle([one[mode] for one in turns]) for mode in turns[0]}
    ratio = round(found["outage"]["p99_us"] / found["quiet"]["p99_us"], 2)
    return found | {"rate": found["busy"]["rate"], "tenants": tenants, "outage_ratio": ratio}


def turn(dev: SidecarDev, day: Day, seconds: float, rate: int, hot: list[str], tenants: int) -> dict[str, Any]:
    """Percentiles of decisions in every mode, once."""
    with place.alone(place.worker(dev)), place.alone(place.redis(dev)):
        busy = loaded(dev.authz_port, rate, seconds, hot, day.goes_on)
        place.tenants(dev, tenants)  # waits until all of them are published
        return {"busy": busy} | at_rest(dev, seconds * QUIET, rate, hot)


def at_rest(dev: SidecarDev, seconds: float, rate: int, hot: list[str]) -> dict[str, dict[str, Any]]:
    """Percentiles with nothing beside the load, first with Redis and then without."""
    with steady.load(dev.authz_port, rate - SAMPLES, hot) as load:
        found = {"quiet": sampled(dev.authz_port, seconds, hot)}
        dev.signal_redis(signal.SIGSTOP)
        try:
            time.sleep(SETTLE_S)  # the breaker opens
            found["outage"] = sampled(dev.authz_port, seconds, hot)
        finally:
            dev.signal_redis(signal.SIGCONT)
    return {mode: told | {"rate": round(load.rate) + SAMPLES} for mode, told in found.items()}


def middle(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Of numbers the median, of counts the sum."""
    return {name: (sum if name in COUNTED else statistics.median)(one[name] for one in turns) for name in turns[0]}


def stalled(seconds: float, rate: int) -> dict[str, Any]:
    """Percentiles of a constant answer whose server is stopped for STALL_S in every second."""
    names = [f"t-{number}" for number in range(HOT)]
    with place.on_last_core(), listener.serving("floor") as server, place.alone(server.pid):
        stops = 0

        def stall(elapsed_s: float) -> None:
            nonlocal stops
            if elapsed_s >= stops + 0.5:
                stops += 1
                os.kill(server.pid, signal.SIGSTOP)
                time.sleep(STALL_S)
                os.kill(server.pid, signal.SIGCONT)

        return loaded(int(server.at), rate, seconds, names, stall)


def publish(found: dict[str, Any]) -> None:
    """Keep the numbers."""
    report.publish("latency", found)
    report.publish("decision", {name: found["busy"][name] for name in ("p50_us", "p99_us", "p999_us")})
    report.publish("outage", {"p99_ratio": found["outage_ratio"], "p99_us": found["outage"]["p99_us"]})


def text(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"{found['rate']:,} requests/s over {HOT} of {found['tenants']:,} tenants, from when due:"]
    for mode in ("floor", "busy", "quiet", "outage"):
        told = found[mode]
        p50, p99, p999 = (f"{told[name]:8,.0f} us" for name in ("p50_us", "p99_us", "p999_us"))
        lines.append(f"{mode:8} p50 {p50}  p99 {p99}  p99.9 {p999}  at {told['rate']:,}/s")
    lines.append(f"p99 without Redis: {found['outage_ratio']} times the healthy one")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=9, help="of the busy turns together")
    parser.add_argument("--tenants", type=int, default=10_000)
    parser.add_argument("--rate", type=int, default=0, help="requests/s [default: half of what wrk reaches]")
    parser.add_argument("--stall", action="store_true", help="instead, show that a stalled server is seen")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.stall:
        print(json.dumps(stalled(given.seconds, given.rate or STALLED_RATE)))
        return
    with place.installation() as dev:
        found = measure(dev, given.seconds, given.tenants, given.rate)
    publish(found)
    print(json.dumps(found) if given.json else f"{report.headline()}\n{text(found)}")


if __name__ == "__main__":
    main()
