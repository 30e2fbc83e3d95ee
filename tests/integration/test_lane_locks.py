"""Whoever changes rows of a lane locks the lane first: two that meet wait for each other once, not in a circle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from sidecar.billing.reconciliation import mending
from sidecar.embedded.stripe import stream
from sidecar.embedded.stripe.events import Told
from tests.servers.forwarding import Forwarding, forwarding
from tests.servers.reports import handle, refused_later
from tests.servers.stripe import Stripe

WAITS = "select count(*) as n from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"


@pytest.fixture
async def place(database: str, stripe: Stripe) -> AsyncIterator[Forwarding]:
    async with forwarding(database, stripe) as opened:
        await opened.tenants(["a"])
        yield opened


async def named(place: Forwarding) -> Callable[[], Awaitable[object]]:
    """A report that names its event."""
    await refused_later(place, "meter_event_customer_not_found")
    return lambda: handle(place)


async def unnamed(place: Forwarding) -> Callable[[], Awaitable[object]]:
    """A report of which only the time is known."""
    await place.count("a", 7)
    await place.forwarder().flush()
    lost = Told("quota_api_calls", {}, "of-another-program", 0, "v1")
    stream.report(place.stripe.standin.account, place.meters["api_calls"], [(lost, "archived_meter", "refused")] * 2)
    return lambda: handle(place)


async def parked(place: Forwarding) -> None:
    await refused_later(place, "meter_event_invalid_value")
    await handle(place)
    assert await place.states() == {"parked": 1}


async def retried(place: Forwarding) -> Callable[[], Awaitable[object]]:
    """An operator who sends a row again."""
    await parked(place)
    identifier = (await place.rows())[0]["identifier"]

    async def retry() -> object:
        async with place.ledger.transaction() as tx:
            return await mending.retry(tx, identifier, actor="operator", sure=True)

    return retry


async def all_retried(place: Forwarding) -> Callable[[], Awaitable[object]]:
    """The same for everything that was set aside."""
    await parked(place)

    async def retry() -> object:
        async with place.ledger.transaction() as tx:
            return await mending.retry_all(tx, "", actor="operator", sure=True)

    return retry


@pytest.mark.parametrize("other", [named, unnamed, retried, all_retried])
async def test_who_holds_a_lane_can_change_its_rows_while_another_one_waits_for_it(
    place: Forwarding, other: Callable[[Forwarding], Awaitable[Callable[[], Awaitable[object]]]]
) -> None:
    act = await other(place)
    identifier = (await place.rows())[0]["identifier"]
    async with place.ledger.transaction() as tx:
        await tx.rows("lock_lanes_of_rows", [identifier])
        waiting = asyncio.ensure_future(act())
        while not (await place.sql(WAITS))[0]["n"]:
            assert not waiting.done(), waiting.result()
            await asyncio.sleep(0.01)
        await tx.rows("mark_reported", identifier)  # a deadlock if the other one had the row already
    await waiting
    assert await place.states() in ({"waiting": 1}, {"in_doubt": 1})
