"""Meter events that Stripe took and then refused: every one of them is billed once, or set aside and said so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from sidecar.billing.outbox import fate, lanes, rejection
from sidecar.billing.outbox.delta import Window
from sidecar.billing.outbox.lanes import Release
from sidecar.billing.outbox.row import Row
from sidecar.billing.reconciliation import mending
from sidecar.embedded.stripe import stream
from sidecar.embedded.stripe.events import Told
from sidecar.errors import Conflict, NotFound
from sidecar.ledger import audit
from tests.servers.forwarding import HOUR_S, Forwarding, forwarding
from tests.servers.reports import handle, refused_later, told
from tests.servers.stripe import Stripe

NO_METER = "v1.billing.meter.no_meter_found"


@pytest.fixture
async def place(database: str, stripe: Stripe) -> AsyncIterator[Forwarding]:
    async with forwarding(database, stripe) as opened:
        await opened.tenants(["a"])
        yield opened


async def test_what_can_be_mended_is_sent_again_under_another_identifier(place: Forwarding) -> None:
    await refused_later(place, "meter_event_customer_not_found")
    [before] = await place.rows()
    await handle(place)
    [row] = await place.rows()
    assert (row["state"], row["attempt"]) == ("waiting", 2)
    assert row["identifier"] != before["identifier"]
    await place.advance(HOUR_S)
    await place.forwarder().flush()
    await place.agree()
    async with place.ledger.transaction() as tx:
        [entry] = [entry for entry in await audit.read(tx) if entry.action == "stripe.meter_errors"]
    assert entry.detail["codes"] == {"meter_event_customer_not_found": 1}
    assert (entry.detail["named"], entry.detail["doubted"]) == (1, 0)


async def test_the_same_report_twice_changes_nothing(place: Forwarding) -> None:
    await refused_later(place, "archived_meter")
    await handle(place)
    await place.advance(HOUR_S)
    await place.forwarder().flush()
    [row] = await place.rows()
    await handle(place)
    for _ in range(3):
        await place.advance(HOUR_S)
        await place.forwarder().flush()
    assert (await place.rows())[0]["identifier"] == row["identifier"]
    await place.agree()


async def test_what_can_never_count_is_set_aside_until_an_operator_sends_it_again(place: Forwarding) -> None:
    await refused_later(place, "meter_event_invalid_value")
    await handle(place)
    async with place.ledger.transaction() as tx:
        [item] = await rejection.parked(tx)
    assert "meter_event_invalid_value" in item.reason
    async with place.ledger.transaction() as tx:
        await mending.retry(tx, item.identifier, actor="test")
    await place.forwarder().flush()
    await place.agree()
    async with place.ledger.transaction() as tx:
        [entry] = [entry for entry in await audit.read(tx) if entry.action == "stripe.retry"]
        with pytest.raises(NotFound, match="sidecar stripe parked"):
            await mending.retry(tx, item.identifier, actor="test")
    assert entry.detail["identifier"] == item.identifier


async def test_a_row_that_may_have_arrived_is_sent_again_only_by_who_is_sure(place: Forwarding) -> None:
    await place.count("a", 7)
    await place.forwarder().flush()
    await place.sql("update stripe_outbox set state = 'parked', delivered = null, reason = 'sums do not tell'")
    [row] = await place.rows()
    async with place.ledger.transaction() as tx:
        with pytest.raises(Conflict, match="sums do not tell"):
            await mending.retry(tx, row["identifier"], actor="test")
        assert await mending.retry_all(tx, "", actor="test") == 0
        assert await mending.retry_all(tx, "", actor="test", sure=True) == 1
    assert await place.states() == {"waiting": 1}


async def test_rows_that_a_report_does_not_name_are_settled_by_the_summaries(place: Forwarding) -> None:
    names = [f"t{number}" for number in range(8)]
    await place.tenants(names)
    place.stripe.faults({"kind": "async_error", "code": "archived_meter", "path": "*stream", "count": 1})
    await place.count_all([(name, "api_calls", 10 + number) for number, name in enumerate(names)])
    forwarder = place.forwarder(bulk=True)
    await forwarder.flush()
    assert await place.states() == {"delivered": 8}
    await place.advance(1)
    assert place.at_stripe() == {}
    assert len(told(place)) == 1
    await handle(place)
    assert await place.states() == {"waiting": stream.SAMPLES_MAX, "in_doubt": 8 - stream.SAMPLES_MAX}
    # Later usage of the same customers shows that the summaries are up to date.
    await place.advance(HOUR_S)
    await place.count_all([(name, "api_calls", 1) for name in names])
    await forwarder.flush()
    for _ in range(4):
        await place.advance(HOUR_S)
        await forwarder.flush()
    assert set(await place.states()) == {"delivered"}
    await place.agree()


async def test_rows_that_did_count_stay_delivered_when_a_report_leaves_them_in_doubt(place: Forwarding) -> None:
    await place.count("a", 7)
    await place.forwarder().flush()
    [row] = await place.rows()
    account = place.stripe.standin.account
    lost = Told("quota_api_calls", {}, "of-another-program", 0, "v1")
    stream.report(account, place.meters["api_calls"], [(lost, "archived_meter", "refused")] * 2)
    await handle(place)
    assert await place.states() == {"in_doubt": 1}
    await place.advance(HOUR_S)
    await place.forwarder().flush()
    assert await place.states() == {"delivered": 1}
    assert (await place.rows())[0]["identifier"] == row["identifier"]
    await place.agree()


async def record(place: Forwarding, row: Any) -> None:
    """A forwarder records the answer that an event was taken, maybe again, since its first commit was not confirmed."""
    window = Window(row["tenant"], row["metric"], int(row["period"].timestamp()), int(row["hour"].timestamp()))
    at_s, deadline_s = int(row["at"].timestamp()), int(row["deadline"].timestamp())
    told = Row(window, 1, row["value"], row["identifier"], row["attempt"], row["tries"], 0, at_s, deadline_s, 0, 0)
    async with place.ledger.transaction() as tx:
        await lanes.record(tx, [fate.delivered(told)], [Release("lost", window.tenant, window.metric)])


async def test_an_answer_that_is_recorded_after_the_report_of_a_row_does_not_overrule_it(place: Forwarding) -> None:
    await refused_later(place, "meter_event_customer_not_found")
    await place.sql("update stripe_outbox set tries = 2")  # nobody knows which of the calls the report is about
    [row] = await place.rows()
    await handle(place)
    await record(place, row)
    assert await place.states() == {"in_doubt": 1}
    await place.advance(HOUR_S)
    await place.count("a", 1)
    await place.forwarder().flush()
    await place.advance(HOUR_S)
    for _ in range(2):
        await place.forwarder().flush()
    await place.agree()
    assert await place.states() == {"delivered": 2}


async def test_an_answer_that_is_recorded_after_its_row_was_set_aside_changes_nothing(place: Forwarding) -> None:
    await refused_later(place, "meter_event_invalid_value")
    [row] = await place.rows()
    await handle(place)
    await record(place, row)
    assert await place.states() == {"parked": 1}


@pytest.mark.parametrize("state", ["delivered", "sending"])
async def test_an_answer_that_is_recorded_after_a_report_without_names_does_not_overrule_it(
    place: Forwarding, state: str
) -> None:
    await place.count("a", 7)
    await place.forwarder().flush()
    await place.sql("update stripe_outbox set state = $1", state)
    [row] = await place.rows()
    lost = Told("quota_api_calls", {}, "of-another-program", 0, "v1")
    stream.report(place.stripe.standin.account, place.meters["api_calls"], [(lost, "archived_meter", "refused")] * 2)
    await handle(place)
    await record(place, row)
    assert await place.states() == {"in_doubt": 1}


async def test_an_answer_that_is_recorded_late_counts_where_nothing_was_reported(place: Forwarding) -> None:
    await place.count("a", 7)
    await place.forwarder().flush()
    await place.sql("update stripe_outbox set state = 'in_doubt', delivered = null, look_at = now()")
    [row] = await place.rows()
    await record(place, row)
    assert await place.states() == {"delivered": 1}


async def test_a_report_about_a_meter_of_somebody_else_concerns_nobody_here(place: Forwarding) -> None:
    await place.count("a", 7)
    await place.forwarder().flush()
    account = place.stripe.standin.account
    lost = Told("other", {}, "of-another-program", 0, "v1")
    stream.report(account, "mtr_of_another", [(lost, "archived_meter", "refused")])
    await handle(place)
    assert await place.states() == {"delivered": 1}


async def test_a_name_without_any_meter_puts_its_rows_back(place: Forwarding) -> None:
    await place.count("a", 7)
    await place.forwarder().flush()
    [row] = await place.rows()
    account = place.stripe.standin.account
    account.metering.cancel(account.metering.events()[0])
    lost = Told("quota_api_calls", {}, row["identifier"], 0, "v1")
    stream.report(account, "", [(lost, "no_meter", "No active meter found")])
    assert told(place)[-1]["type"] == NO_METER
    await handle(place)
    await place.advance(HOUR_S)
    await place.forwarder().flush()
    await place.agree()
