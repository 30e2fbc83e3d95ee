"""A process that changes subscriptions has usage sent by another one, which sends it."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.billing.flush_requests import Answering, Asking, NobodyFlushes
from sidecar.errors import StoreUnavailable
from tests.servers.forwarding import Forwarding


async def waits(place: Forwarding) -> int:
    return int((await place.sql("select count(*) from flush_requests"))[0][0])


async def asked(place: Forwarding) -> None:
    """Return once a request waits."""
    while not await waits(place):
        await asyncio.sleep(0.01)


async def test_usage_is_sent_by_who_answers_and_what_is_left_is_told(place: Forwarding) -> None:
    await place.tenants(["a", "b"])
    await place.count("a", 7)
    await place.count("b", 7)
    answering = Answering(place.ledger, place.forwarder().flush_tenant)
    assert not await answering.answer(), "nobody asks yet"
    asking = asyncio.create_task(Asking(place.ledger)("a"))
    await asked(place)
    assert await answering.answer()
    assert await asking == 0
    assert place.at_stripe() == {("a", "api_calls"): 7}
    assert not await waits(place)


async def test_what_could_not_be_sent_is_told(place: Forwarding) -> None:
    await place.tenants(["a"])
    await place.count("a", 7)
    await place.forwarder().flush()
    await place.sql("update stripe_outbox set state = 'parked', delivered = null, reason = 'a test'")
    asking = asyncio.create_task(Asking(place.ledger)("a"))
    await asked(place)
    await Answering(place.ledger, place.forwarder().flush_tenant).answer()
    assert await asking == 1


async def test_a_flusher_without_redis_says_that_something_is_left(place: Forwarding) -> None:
    async def without_redis(_: str, /) -> int:
        raise StoreUnavailable

    await place.tenants(["a"])
    asking = asyncio.create_task(Asking(place.ledger)("a"))
    await asked(place)
    await Answering(place.ledger, without_redis).answer()
    assert await asking == 1


async def test_when_nobody_answers_that_is_told_and_nothing_stays(place: Forwarding) -> None:
    await place.tenants(["a"])
    with pytest.raises(NobodyFlushes):
        await Asking(place.ledger, taken_within_s=0)("a")
    assert not await waits(place)


async def test_a_request_whose_taker_died_is_taken_by_the_next(place: Forwarding) -> None:
    await place.tenants(["a"])
    await place.count("a", 7)
    asking = asyncio.create_task(Asking(place.ledger)("a"))
    await asked(place)
    await place.sql("update flush_requests set taken = now()")
    answering = Answering(place.ledger, place.forwarder().flush_tenant)
    assert not await answering.answer()
    await place.sql("update flush_requests set taken = now() - interval '26 seconds'")
    assert await answering.answer()
    assert await asking == 0


async def test_a_request_that_nobody_waits_for_any_more_is_left_alone(place: Forwarding) -> None:
    await place.tenants(["a"])
    await place.count("a", 7)
    await place.sql("insert into flush_requests (tenant, asked) values ('a', now() - interval '61 seconds')")
    assert not await Answering(place.ledger, place.forwarder().flush_tenant).answer()
    assert place.at_stripe() == {}


async def test_several_answer_and_each_request_once(place: Forwarding) -> None:
    names = [f"t{number}" for number in range(6)]
    await place.tenants(names)
    await place.count_all([(name, "api_calls", 5) for name in names])
    answering = [asyncio.create_task(Answering(place.ledger, place.forwarder().flush_tenant).run()) for _ in range(2)]
    assert await asyncio.gather(*(Asking(place.ledger)(name) for name in names)) == [0] * 6
    for task in answering:
        task.cancel()
    await asyncio.gather(*answering, return_exceptions=True)
    await place.agree()
