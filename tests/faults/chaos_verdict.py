"""What must hold after a chaos run, once everything is healed and quiet.

Guarantees: each number is read from where it is kept: answers from the book, amounts from Postgres, totals from Stripe,
            what was under way from Envoy.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import redis.asyncio
from msgspec import Struct
from redis.exceptions import RedisError

from sidecar import child
from sidecar.child import Unanswered
from sidecar.store.keys import Keyspace
from tests.faults.chaos_place import EDGES, FLUSHERS, RECLAIM_AFTER_MS, Client, Place
from tests.faults.chaos_traffic import ChaosTraffic

QUIET_S = 120.0
# A flusher that was killed with lanes in its hands keeps them for two and a half minutes.
STRIPE_S = 240.0
POLL_S = 0.25
KEYS = Keyspace()
EXPECTED = ("allowed", "429", "503", "lost", "sidecar away")


class Verdict(Struct, kw_only=True):
    """The numbers of a run; amounts are units of api_calls."""

    faults: int
    answered: int
    ledger: int
    stripe: int
    in_flight: int
    over_admitted: int
    units_lost: int
    caps_reached: int
    by_kind: dict[str, int]
    answers: dict[str, int]
    control: dict[str, int]
    violations: list[str]


class UnitsLost:
    """Counts the lease units that Redis takes back from silent writers, over wipes and failovers."""

    def __init__(self, place: Place) -> None:
        self.units = 0
        self._place = place
        self._last = [0] * KEYS.shards

    async def run(self) -> None:
        while True:
            try:
                await self._look()
            except (RedisError, OSError, TimeoutError):
                self._last = [0] * KEYS.shards
            await asyncio.sleep(POLL_S)

    async def _look(self) -> None:
        async with redis.asyncio.Redis.from_url(self._place.redis.primary.url, socket_timeout=5) as client:
            pipe = client.pipeline(transaction=False)
            for shard in range(KEYS.shards):
                pipe.hget(KEYS.epoch(shard), "reclaimed")
            found = [int(value or 0) for value in await pipe.execute()]
        self.units += sum(now if now < last else now - last for now, last in zip(found, self._last, strict=True))
        self._last = found


async def settle(place: Place, tell: Callable[[str], None], *, patient: bool) -> list[str]:
    """Wait until all is in the ledger and at Stripe; what did not come about in time."""
    problems = []
    await asyncio.gather(*(program.ready() for program in place.programs.values()))
    tell("adopting journals")
    if not await _until(lambda: _only_living_journals(place), QUIET_S):
        problems.append("journals of dead workers were not adopted: " + ", ".join(_journals(place)))
    for name in EDGES:
        for socket in place.programs[name].state.glob("ops-*.sock"):
            await _flushed(socket)
    if not patient:
        tell("voiding claims of dead flushers")
        await place.restart_office()
    for name in FLUSHERS:
        tell(f"sidecar flush at {name}")
        status, told = await place.programs[name].command("flush")
        if status:
            problems.append(f"sidecar flush at {name} ended with {status}: {told.strip()[-300:]}")
    tell("waiting for Stripe")
    await _until(lambda: _same_at_stripe(place), STRIPE_S)
    tell("waiting for leases")
    if not await _until(lambda: _nothing_held(place), QUIET_S / 4):
        problems.append("leases were not given back")
    status, told = await place.programs[FLUSHERS[0]].command("verify", "--json", state=place.folder)
    if status:
        problems.append(f"sidecar verify ended with {status}: {told.strip()[-1500:]}")
    return problems


async def judge(
    place: Place, clients: list[Client], traffic: ChaosTraffic, done: Counter[str], units_lost: int, problems: list[str]
) -> Verdict:
    """Compare what was answered, counted and billed."""
    ledger, stripe = await _ledger(place), await _stripe(place)
    unanswered = sum(envoy.unanswered_checks() for envoy in place.envoys.values())
    in_flight = unanswered + traffic.answers["lost"]
    violations = list(problems)
    over_admitted = 0
    for client in clients:
        page, counted = traffic.book[client.tenant], ledger.get(client.tenant, 0)
        name = f"{client.tenant} (shard {zlib.crc32(client.tenant.encode()) % KEYS.shards})"
        if counted < page.allowed:
            violations.append(f"{name}: {page.allowed} answered allows, {counted} in the ledger")
        if counted > page.allowed + in_flight:
            violations.append(f"{name}: {counted} in the ledger, {page.allowed} answered allows")
        if counted != stripe.get(client.tenant, 0):
            violations.append(f"{name}: {counted} in the ledger, {stripe.get(client.tenant, 0)} at Stripe")
        if client.cap is not None and counted > client.cap:
            over_admitted += counted - client.cap
        if client.cap is None and page.answers["429 limit_reached"]:
            violations.append(f"{name}: denied, though it has no cap")
    answered, total = traffic.answered, sum(ledger.values())
    if not answered <= total <= answered + in_flight:
        violations.append(f"{answered} answered allows, {total} in the ledger, {in_flight} in flight")
    if over_admitted > units_lost:
        violations.append(f"{over_admitted} over-admitted, {units_lost} explained by leases taken back")
    violations += [
        f"{count} answers {what!r}, which nothing here explains"
        for what, count in traffic.answers.items()
        if not what.startswith(EXPECTED)
    ]
    return Verdict(
        faults=done.total(),
        answered=answered,
        ledger=total,
        stripe=sum(stripe.values()),
        in_flight=in_flight,
        over_admitted=over_admitted,
        units_lost=units_lost,
        caps_reached=traffic.reached,
        by_kind=dict(sorted(done.items())),
        answers=dict(traffic.answers.most_common()),
        control=dict(traffic.control.most_common()),
        violations=violations,
    )


async def _ledger(place: Place) -> dict[str, int]:
    rows = await place.sql("select tenant, sum(amount)::bigint from usage_windows where scope = '' group by tenant")
    return {str(tenant): int(amount) for tenant, amount in rows}


async def _stripe(place: Place) -> dict[str, int]:
    customers = {str(c): str(t) for t, c in await place.sql("select tenant, customer from billing_customers")}
    found: Counter[str] = Counter()
    for total in await asyncio.to_thread(place.stripe.totals):
        amount = int(total["total"])
        if amount:
            found[customers.get(total["customer"], total["customer"])] += amount
    return dict(found)


async def _same_at_stripe(place: Place) -> bool:
    return await _stripe(place) == {tenant: amount for tenant, amount in (await _ledger(place)).items() if amount}


async def _nothing_held(place: Place) -> bool:
    """Whether every lease came back: an idle one does by itself (L2)."""
    async with redis.asyncio.Redis.from_url(place.redis.primary.url, socket_timeout=5) as client:
        held = [await client.hget(key, "held") async for key in client.scan_iter(match="sc:*:limit:*", count=1000)]
    return not any(int(value or 0) for value in held)


def _journals(place: Place) -> list[str]:
    return [path.name for name in EDGES for path in place.programs[name].state.rglob("*.journal")]


async def _only_living_journals(place: Place) -> bool:
    """Whether there are as many journals as workers: those of the dead are deleted when the ledger has them."""
    return all(
        len(list(program.state.rglob("*.journal"))) == len(program.children())
        for program in (place.programs[name] for name in EDGES)
    )


async def _flushed(socket: Any) -> None:
    deadline = asyncio.get_running_loop().time() + QUIET_S
    while True:
        try:
            return await child.flush(socket, RECLAIM_AFTER_MS / 1000)
        except Unanswered:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(POLL_S)


async def _until(condition: Callable[[], Any], within_s: float) -> bool:
    deadline = asyncio.get_running_loop().time() + within_s
    while True:
        try:
            if await condition():
                return True
        except (RedisError, OSError, TimeoutError) as error:
            last = error
            if asyncio.get_running_loop().time() > deadline:
                raise AssertionError(f"still failing after {within_s} s") from last
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(POLL_S)
