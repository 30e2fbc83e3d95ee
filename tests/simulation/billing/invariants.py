"""What must hold of what bills when everything has come to rest: S1, and that the ledger has what was counted."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from tests.simulation.billing.world import SCALES, TENANTS, Billing

ROUND_MS = 2_400
ROUNDS = 14
PROMPT_ROUNDS = 6  # of half an hour: longer than any pause between two tries
PATIENT_ROUNDS = 8  # of a day each: doubtful rows wait for three days
MINUTE_MS, HOUR_MS = 60_000, 3_600_000


def heal(world: Billing) -> None:
    """Let every fault end, and time pass with a little usage until all of it is made good."""
    world.note("everything heals")
    world.healed = True
    for planned in world.planned:
        planned.cancel()
    rates = world.stripe.rates.of
    rates.update(dict.fromkeys(rates, 0))
    world.stripe.up = world.postgres.up = True
    world.stripe.lag_ms = MINUTE_MS
    world.fuses.clear()
    for office in world.offices:
        world.loop.resume(office.process)
    for office in world.alive()[1:]:
        world.kill(office.process)
    if not world.alive():
        world.start_office()
    stuck = {row.identifier for row in open_rows(world) if row.state != "in_doubt"}
    for number in range(ROUNDS + PATIENT_ROUNDS):
        world.loop.run_until(world.loop.now_ms + ROUND_MS)
        stuck &= {row.identifier for row in open_rows(world) if row.state != "in_doubt"}
        if number == PROMPT_ROUNDS and stuck:
            world.violated("S1", f"hours after everything healed these are still on their way: {sorted(stuck)}")
        if number > 1 and not open_rows(world):
            break
        # Later deliveries are what Stripe's summaries are believed by.
        for tenant in TENANTS:
            for metric in SCALES:
                world.use(tenant, metric, 1)
        world.loop.run_until(world.loop.now_ms + ROUND_MS)
        world.leap(35 * MINUTE_MS if number < ROUNDS else 24 * HOUR_MS)
    for _ in range(4):
        world.loop.run_until(world.loop.now_ms + ROUND_MS)
        if settled(world):
            return
        world.leap(7 * MINUTE_MS)


def open_rows(world: Billing) -> list[Any]:
    tables = world.tables
    return [row for rows in tables.rows.values() for row in rows.values() if row.state not in {"delivered", "parked"}]


def settled(world: Billing) -> bool:
    tables = world.tables
    billed: dict[Any, int] = {}
    for rows in tables.rows.values():
        for row in rows.values():
            key = (row.tenant, row.metric, row.period_s, row.hour_s)
            billed[key] = billed.get(key, 0) + row.amount
    lacking = any(amount > billed.get(key, 0) for key, amount in tables.windows.items())
    return not (lacking or world.counts.dirty or open_rows(world))


def check(world: Billing) -> None:
    """S1, and that the ledger has what was counted."""
    tables = world.tables
    for key, units in world.counts.amounts.items():
        found = tables.counters.get(key, 0)
        if found != units:
            world.violated("C1", f"the ledger has {found} of {units} for {key}")
    _check_totals(world, _left_to_people(world))
    for refusal in world.stripe.account.metering.refused:
        if refusal.code != "duplicate_meter_event":
            world.violated("S1", f"Stripe refused {refusal.identifier}: {refusal.code}")
    for name in sorted(world.postgres.unknown):
        world.violated("crash", f"the simulated ledger has no query {name}")
    for failure in world.loop.failures:
        world.violated("crash", f"{failure.get('exception')!r}")


def _left_to_people(world: Billing) -> dict[tuple[str, str], Decimal]:
    """What Stripe lacks because its sums were ambiguous; every other row has to be delivered."""
    missing: dict[tuple[str, str], Decimal] = {}
    for row in [row for rows in world.tables.rows.values() for row in rows.values() if row.state != "delivered"]:
        if row.state != "parked" or row.first_sent is None:
            world.violated("S1", f"not delivered in the end: {row}")
            continue
        world.count("row left to a person", row.reason)
        if row.identifier not in world.arrived:
            lane = (row.tenant, row.metric)
            missing[lane] = missing.get(lane, Decimal(0)) + Decimal(row.value)
    return missing


def _check_totals(world: Billing, missing: dict[tuple[str, str], Decimal]) -> None:
    for tenant in TENANTS:
        for metric in SCALES:
            counted, lane = world.counts.total(tenant, metric), (tenant, metric)
            if world.sent[lane] + missing.get(lane, Decimal(0)) != counted:
                world.violated("S1", f"Stripe has {world.sent[lane]} of {lane}, {counted} were counted")
