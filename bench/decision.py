"""Ratio of the real worker's decision rate to a constant answer of the same listener.

Compares, on one core and in the same run:

* ``floor``: a bare protocol on the same parser, which reads nothing and writes one constant answer (see listener.py);
* ``aiohttp``: a constant answer of aiohttp's low-level server;
* ``constant``: the decision listener with all its bounds, but one constant answer in place of a decision;
* ``decision``: a worker of `sidecar dev` with a real Redis and Postgres behind it: identity by header, 200 route rules,
  three limits (one leased for the month, one leased for the minute, one soft), the journal, all answer headers;
* ``varied``: the same, when every request has an id of its own and one of 10,000 paths, which is more than the route
  memo holds.

The load (wrk) runs on another core, together with everything that is not the worker. Rounds alternate; floor and
decision are measured in all of them, the others in one of three. Rates are medians, and ratios are medians of the
ratios within a round: a machine that is shared runs everything a quarter slower for some seconds, and what is measured
at other times is not to be compared. Afterwards the ledger must have what wrk saw answered, or there are no numbers.

    python bench/decision.py [--seconds 3] [--rounds 5] [--json]
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from typing import Any

from bench import listener, place, report, wrk
from tests.servers.sidecar_dev import SidecarDev

# What is measured, and how its keys begin in the result.
PREFIXES = {"floor": "floor_", "aiohttp": "aiohttp_", "constant": "constant_", "decision": "", "varied": "varied_"}
FREQUENT = ("floor", "decision")
RARE = 3  # the others are measured in one of so many rounds
TENANT = "tenant-123"
# As long as the floor's headers. Its constant request id would make all requests repeats of one.
HEADERS = {name.replace("x-request-id", "x-request-no"): value for name, value in listener.HEADERS.items()}
VARIED = """
local number, prefix = 0, "%s"
local head = " HTTP/1.1\\r\\nHost: localhost\\r\\n%s"
request = function()
  number = number + 1
  local path = "GET /envoy/v1/agents/" .. number %% 10000 .. "/run?mode=fast"
  return path .. head .. "x-request-id: " .. prefix .. number .. "\\r\\n\\r\\n"
end
"""


def varied(run: int) -> str:
    """A script for wrk in which no request is like another."""
    fixed = "".join(f"{name}: {value}\\r\\n" for name, value in HEADERS.items() if name != "x-request-no")
    return VARIED % (f"{run:08d}-5a9e-4f38-9d6e-", fixed)


def syncs(dev: SidecarDev) -> float:
    """Script calls by which the worker reported and asked for leases."""
    found = re.search(r'^sidecar_store_calls_total\{verb="sync"\} (\S+)', dev.metrics(), re.MULTILINE)
    return float(found[1]) if found else 0


def measure(dev: SidecarDev, seconds: float, rounds: int, connections: int) -> dict[str, Any]:
    """Medians of alternating rounds, and ratios to the floor."""
    rates: dict[str, dict[int, float]] = {mode: {} for mode in PREFIXES}
    cpu: dict[str, dict[int, float]] = {mode: {} for mode in PREFIXES}
    answered = 0
    dev.put_tenant(TENANT, "standard")
    dev.cli("flush")
    url, pid = f"{dev.at.authz}{listener.PATH}", place.worker(dev)
    answered += wrk.drive(url, wrk.headers(HEADERS), 1, connections)[1]  # the first lease, a warm memo
    syncs_before, answered_before = syncs(dev), answered
    for run in range(rounds):
        scripts = {"decision": wrk.headers(HEADERS), "varied": varied(run)}
        for mode in ("aiohttp", "decision", "floor", "varied", "constant"):
            if run % RARE and mode not in FREQUENT:
                continue
            if mode in scripts:
                used_us = place.cpu_us(pid)
                rate, requests = wrk.drive(url, scripts[mode], seconds, connections)
                used = (place.cpu_us(pid) - used_us) / requests
                answered += requests
            else:
                rate, used = listener.measure(mode, seconds, connections)
            rates[mode][run] = rate
            cpu[mode][run] = used
    asked = syncs(dev) - syncs_before
    if place.worker(dev) != pid:
        raise SystemExit("the worker was replaced during the run")
    counted = dev.ledger(TENANT, "api_calls")
    # wrk hangs up on what is in flight at the end of a run.
    if not answered <= counted <= answered + (2 * rounds + 1) * connections:
        raise SystemExit(f"{answered} requests were answered, but the ledger has {counted}")
    found: dict[str, Any] = {}
    for mode, prefix in PREFIXES.items():
        found[f"{prefix}rps"] = round(statistics.median(rates[mode].values()))
        found[f"{prefix}cpu_us"] = round(statistics.median(cpu[mode].values()), 2)
        if mode not in {"aiohttp", "floor"}:
            found[f"{prefix}ratio"] = ratio(rates[mode], rates["floor"])
            found[f"{prefix}cpu_ratio"] = ratio(cpu["floor"], cpu[mode])
    for name, other in (("aiohttp", "aiohttp"), ("listener", "constant")):
        found[f"{name}_ratio"] = ratio(rates["decision"], rates[other])
        found[f"{name}_cpu_ratio"] = ratio(cpu[other], cpu["decision"])
    found["syncs_per_1000"] = round(asked * 1_000 / (answered - answered_before), 4)
    return found | {"seconds": seconds, "rounds": rounds, "connections": connections}


def ratio(ones: dict[int, float], others: dict[int, float]) -> float:
    """The median of what one is to the other in each round in which both were measured."""
    return round(statistics.median(ones[run] / others[run] for run in ones.keys() & others.keys()), 3)


def publish(found: dict[str, Any]) -> None:
    """Keep the numbers."""
    report.publish("decision", found)


def text(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"wrk -t1 -c{found['connections']}"]
    for mode, prefix in PREFIXES.items():
        rate, cpu = found[f"{prefix}rps"], found[f"{prefix}cpu_us"]
        ratios = ""
        if mode not in {"floor", "aiohttp"}:
            ratios = f"  ratio {found[f'{prefix}ratio']:.2f} (CPU {found[f'{prefix}cpu_ratio']:.2f})"
        lines.append(f"{mode:10} {rate:>8,} requests/s  {cpu:6.2f} us CPU a request{ratios}")
    lines.append(f"decision to constant: ratio {found['listener_ratio']:.2f} (CPU {found['listener_cpu_ratio']:.2f})")
    lines.append(f"decision to aiohttp: ratio {found['aiohttp_ratio']:.2f} (CPU {found['aiohttp_cpu_ratio']:.2f})")
    lines.append(f"{found['syncs_per_1000']} calls of Redis per 1,000 decisions")
    lines.append("The ratio is what to compare. On a machine with other work even that is only indicative.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with place.installation() as dev:
        found = measure(dev, given.seconds, given.rounds, given.connections)
    publish(found)
    print(json.dumps(found) if given.json else f"{report.headline()}\n{text(found)}")


if __name__ == "__main__":
    main()
