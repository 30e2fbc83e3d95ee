"""Ratio of the forwarder's rate to bare concurrent calls of the same SDK to the same stand-in.

Compares, in the same run and against one Stripe stand-in in a process of its own:

* ``floor``: concurrent ``meter_events.create`` calls of the SDK, without ledger, claims, pace or records;
* ``forwarder``: the same number of deltas from a real Postgres to Stripe, each claimed, committed as about to be sent,
  sent, and recorded;
* ``bulk``: the same over the meter event stream, a hundred a call.

Afterwards Stripe's totals must equal the ledger's, or there are no numbers. One client process; the stand-in and
Postgres share the remaining cores.

    python -m bench.forwarding [--events 4000] [--rounds 3] [--json]

CPU time is that of the client process alone; a million over it is what one core could carry at most.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import uvloop

from bench import report
from sidecar.billing.outbox.claim import ForwarderTerms
from sidecar.billing.outbox.counters import BillingCounters
from sidecar.billing.outbox.forwarder import Forwarder
from sidecar.billing.stripe_api import StripeApi
from sidecar.clock import Clock
from sidecar.embedded import EmbeddedPostgres
from sidecar.ledger import plans, tenants
from sidecar.ledger.connection import Ledger
from sidecar.ledger.migrate import migrate
from sidecar.ledger.shard import CounterRow

KEY = "sk_test_standin0123456789"
CONCURRENT = 64
PERIOD_S = (int(time.time()) // 3_600 - 24) * 3_600
CATALOGUE = """
metrics: {api_calls: {}}
plans:
  free: {price: 0, limits: {api_calls: {included: 100, period: billing, cap: soft}}}
identity: [{header: x-tenant-id}]
default_plan: free
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class StandIn:
    """The stand-in in a process of its own, without a bound on calls a second."""

    def __init__(self) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "sidecar.embedded.stripe", "--port", self.url.rpartition(":")[2], "--key", KEY]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        for _ in range(200):
            try:
                self.ask("GET", "/_health")
                break
            except OSError:
                time.sleep(0.05)
        self.ask("POST", "/_options", {"meter_calls_per_s": 0, "meter_call_ms": 0})

    def ask(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)


async def prepare(ledger: Ledger, api: StripeApi, names: list[str]) -> dict[str, str]:
    """Tenants with a customer each, and a meter."""
    customers = {}
    for name in names:
        customers[name] = (await api.v1.customers.create_async({"name": name})).id
    meter = await api.v1.billing.meters.create_async(
        {"display_name": "calls", "event_name": "quota_api_calls", "default_aggregation": {"formula": "sum"}}
    )
    async with ledger.transaction() as tx:
        await plans.apply(tx, CATALOGUE, {}, actor="bench")
        connection = tx._connection
        await connection.execute(
            "insert into stripe_objects (id, kind, name, metric, event_name, created)"
            " values ($1, 'meter', 'api_calls', 'api_calls', 'quota_api_calls', ledger_now() - interval '1 day')",
            meter.id,
        )
        for name in names:
            await tenants.put(tx, name, plan="free", anchor_s=PERIOD_S, actor="bench")
        await connection.executemany(
            "insert into billing_customers (tenant, customer, billed_from) values ($1, $2, 'epoch')",
            list(customers.items()),
        )
    return customers


async def count(ledger: Ledger, names: list[str], amount: int) -> None:
    """Every tenant used so much by now."""
    hour = int(time.time()) // 3600
    async with ledger.shard(0) as tx:
        assert tx is not None
        await tx.merge([CounterRow(name, "api_calls", "", PERIOD_S, hour, "w1", amount) for name in names], "free")


async def floor(api: StripeApi, customers: dict[str, str], events: int) -> float:
    """Calls a second of the SDK alone."""
    ids = list(customers.values())
    numbers = iter(range(events))
    mark = time.time_ns()
    now = int(time.time())

    async def caller() -> None:
        for number in numbers:
            name = f"floor{mark}x{number}"
            await api.v1.billing.meter_events.create_async(
                {
                    "event_name": "quota_api_calls",
                    "payload": {"stripe_customer_id": ids[number % len(ids)], "value": "0"},
                    "identifier": name,
                    "timestamp": now,
                },
                {"idempotency_key": name},
            )

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CONCURRENT)))
    return events / (time.perf_counter() - began)


async def forwarded(ledger: Ledger, api: StripeApi, *, bulk: bool) -> float:
    """Deltas a second that a forwarder takes from the ledger to Stripe."""
    terms = ForwarderTerms(interval_s=1, close_delay_s=3600, calls_per_s=100_000, bulk=bulk)
    counters = BillingCounters()
    forwarder = Forwarder(ledger, api, terms, counters, Clock())
    await forwarder.outbox.decide(0)
    began = time.perf_counter()
    await forwarder.pump()
    taken_s = time.perf_counter() - began
    assert counters.events["delivered"] == counters.deltas, counters.events
    return counters.deltas / taken_s


async def measure(dsn: str, standin: StandIn, events: int, rounds: int) -> dict[str, Any]:
    ledger = await Ledger.open(dsn, shards=1)
    api = StripeApi.open(KEY, standin.url)
    names = [f"tenant-{number}" for number in range(events)]
    customers = await prepare(ledger, api, names)
    found: dict[str, list[float]] = {"floor": [], "forwarder": [], "bulk": []}
    cpu_us: dict[str, list[float]] = {name: [] for name in found}
    used = 0
    for _ in range(rounds):
        cpu_s = time.process_time()
        found["floor"].append(await floor(api, customers, events))
        cpu_us["floor"].append((time.process_time() - cpu_s) / events * 1e6)
        for name, bulk in (("forwarder", False), ("bulk", True)):
            used += 1
            await count(ledger, names, used)
            cpu_s = time.process_time()
            found[name].append(await forwarded(ledger, api, bulk=bulk))
            cpu_us[name].append((time.process_time() - cpu_s) / events * 1e6)
    total = sum(float(item["total"]) for item in standin.ask("GET", "/_totals"))
    assert total == events * used, f"Stripe has {total}, the ledger {events * used}"
    await api.close()
    await ledger.close()
    return {f"{name}_per_s": round(statistics.median(rates)) for name, rates in found.items()} | {
        f"{name}_cpu_us": round(statistics.median(each)) for name, each in cpu_us.items()
    }


async def run(events: int, rounds: int) -> dict[str, Any]:
    directory = Path(tempfile.mkdtemp(prefix="quota-bench-"))
    directory.chmod(0o755)  # Postgres runs as somebody else when we are root
    server = EmbeddedPostgres(directory / "postgres", durable=False)
    standin = StandIn()
    try:
        await server.start()
        await migrate(server.dsn)
        rates = await measure(server.dsn, standin, events, rounds)
    finally:
        standin.stop()
        await server.stop()
        shutil.rmtree(directory)
    return {
        "events": events,
        "rounds": rounds,
        **rates,
        "ratio": round(rates["forwarder_per_s"] / rates["floor_per_s"], 3),
        "bulk_ratio": round(rates["bulk_per_s"] / rates["floor_per_s"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    headline = report.headline()
    result = uvloop.run(run(options.events, options.rounds))
    report.publish("forwarding", result)
    if options.json:
        print(json.dumps(result))
        return
    print(headline)
    print(f"{result['events']} deltas, median of {result['rounds']} rounds")
    for name, told in (
        ("floor", "bare calls of the SDK"),
        ("forwarder", "forwarder"),
        ("bulk", "forwarder, bulk path"),
    ):
        rate, cpu_us = result[f"{name}_per_s"], result[f"{name}_cpu_us"]
        print(f"{told:<22} {rate:>7} /s   ratio {rate / result['floor_per_s']:.2f}   {cpu_us:>5} us CPU each")


if __name__ == "__main__":
    main()
