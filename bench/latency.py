"""How long the slowest decisions take at half of the maximum rate, while everything happens that happens in a day.

Measures, from the time at which each request was due (see open_loop.py):

* ``floor``: the same load on a constant answer of the same parser: what the machine and the generator bring themselves;
* ``quiet``: decisions over a hundred tenants, of ten thousand that the worker knows;
* ``busy``: the same while metrics are scraped twice a second, leases are renewed, usage is reported and flushed, the
  garbage is collected, and a changed catalogue is applied, which publishes all ten thousand tenants anew;
* ``outage``: the same after Redis was stopped and the breaker opened.

Where more than one request in a hundred was refused or lost there are no numbers.

    python bench/latency.py [--seconds 5] [--tenants 10000] [--rate 0] [--json]
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import listener, open_loop, place, report
from tests.servers.sidecar_dev import SidecarDev

HOT = 100
SCRAPE_S = 0.5
RELOAD_AT_S = 0.5
SETTLE_S = 2.0
CATALOGUE = """
identity: [{{header: x-tenant-id}}]
metrics: {{api_calls: {{}}}}
plans:
  standard:
    limits:
      api_calls: {{included: 1_000_000_000_000, period: month, cap: hard, on_outage: open}}
      burst: {{metric: api_calls, included: {burst}, period: minute, cap: hard, on_outage: open}}
      fair_use: {{metric: api_calls, included: 1_000_000_000_000, period: day, cap: soft}}
    features: {{branding: custom, llm: large}}
    forward: [branding, llm]
routes:
{rules}  - {{name: run, match: /v1/agents/*/run}}
"""
RULES = "".join(f"  - {{name: rule-{n}, match: GET /v1/things-{n}/*}}\n" for n in range(199))


def catalogue(burst: int) -> str:
    """Two hundred rules and three limits, of which one can be changed."""
    return CATALOGUE.format(burst=burst, rules=RULES)


class Day:
    """What goes on beside the load."""

    def __init__(self, dev: SidecarDev) -> None:
        self._dev = dev
        self._scrape_at_s = 0.0
        self.reloaded = False

    def goes_on(self, elapsed_s: float) -> None:
        """Called every few milliseconds."""
        if elapsed_s >= self._scrape_at_s:
            self._scrape_at_s += SCRAPE_S
            with urllib.request.urlopen(f"{self._dev.at.ops}/metrics", timeout=10) as answer:
                answer.read()
        if elapsed_s >= RELOAD_AT_S and not self.reloaded:
            self.reloaded = True
            (self._dev.state.parent / "catalogue.yaml").write_text(catalogue(1_100_000_000))


def measure(seconds: float, tenants: int, rate: int) -> dict[str, Any]:
    """Percentiles of every mode, at ``rate`` or else half of what wrk reaches."""
    found: dict[str, Any] = {}
    with place.installation(catalogue(1_000_000_000)) as dev:
        names = place.add_tenants(dev, tenants)
        hot = names[:HOT]
        # Every tenant is in the worker's memory from here on.
        open_loop.warm(dev.authz_port, names)
        if not rate:
            script = listener.headers({**listener.HEADERS, "x-tenant-id": hot[0]}).replace(
                "x-request-id", "x-request-no"
            )
            most = listener.drive(f"{dev.at.authz}{listener.PATH}", script, 2, open_loop.CONNECTIONS)[0]
            rate = int(most / 2)
        found["rate"] = rate

        def run(port: int, beside: Callable[[float], None] | None = None) -> dict[str, Any]:
            told = open_loop.loaded(port, rate, seconds, hot, beside=beside)
            open_loop.check(told)
            return told

        found["floor"] = constant(run)
        run(dev.authz_port)  # leases of the right size
        found["quiet"] = run(dev.authz_port)
        day = Day(dev)
        found["busy"] = run(dev.authz_port, day.goes_on)
        found["healthy"] = run(dev.authz_port)
        dev.signal_redis(signal.SIGSTOP)
        try:
            time.sleep(SETTLE_S)  # the breaker opens
            open_loop.loaded(dev.authz_port, rate, 1, hot)
            found["outage"] = run(dev.authz_port)
        finally:
            dev.signal_redis(signal.SIGCONT)
    found["tenants"] = tenants
    return found


def constant(run: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """The same load on the constant answer of listener.py."""
    command = [
        "taskset",
        "-c",
        str(place.first_core()),
        sys.executable,
        str(Path(listener.__file__)),
        "--serve",
        "floor",
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        return run(int(server.stdout.readline()))
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--tenants", type=int, default=10_000)
    parser.add_argument("--rate", type=int, default=0, help="requests/s [default: half of what wrk reaches]")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = measure(given.seconds, given.tenants, given.rate)
    ratio = round(found["outage"]["p99_us"] / found["healthy"]["p99_us"], 2)
    report.publish("latency", found)
    report.publish("decision", {name: found["busy"][name] for name in ("p50_us", "p99_us", "p999_us")})
    report.publish("outage", {"p99_ratio": ratio, "p99_us": found["outage"]["p99_us"]})
    if given.json:
        print(json.dumps(found))
        return
    print(
        f"{report.headline()}\n{found['rate']:,} requests/s over {HOT} of {found['tenants']:,} tenants, from when due:"
    )
    for mode in ("floor", "quiet", "busy", "healthy", "outage"):
        told = found[mode]
        print(
            f"{mode:8} p50 {told['p50_us']:8,.0f} us  p99 {told['p99_us']:8,.0f} us  p99.9 {told['p999_us']:8,.0f} us"
        )
    print(f"p99 without Redis: {ratio} times the healthy one")


if __name__ == "__main__":
    main()
