"""Rows that equal each other: a sum of Stripe's does not tell which of them it has, whatever is told later."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Literal

import pytest
from msgspec.structs import replace

from sidecar.billing.outbox.lanes import Work
from sidecar.billing.outbox.settlement import Summaries
from sidecar.billing.reconciliation.drift import Lane, Seen
from sidecar.billing.reconciliation.reconciler import Reconciler
from sidecar.billing.reconciliation.shown import Shown
from sidecar.clock import Clock
from sidecar.embedded.stripe import stream
from sidecar.embedded.stripe.events import Told
from sidecar.ledger.distrust import distrust
from tests.servers.forwarding import DAY_S, HOUR_S, Forwarding, forwarding
from tests.servers.reports import handle, refused_later
from tests.servers.stripe import Stripe


@pytest.fixture
async def place(database: str, stripe: Stripe) -> AsyncIterator[Forwarding]:
    async with forwarding(database, stripe) as opened:
        await opened.tenants(["a"])
        yield opened


CODE = "meter_event_customer_not_found"


class Late(Summaries):
    """Sums that do not show an amount yet whose timestamp is ``at_s``."""

    hidden = Decimal(0)
    at_s = 0

    async def total(self, work: Work, from_s: int, before_s: int) -> Decimal:
        found = await super().total(work, from_s, before_s)
        return found - self.hidden if from_s <= self.at_s < before_s else found


class LateShown(Shown):
    """The same for the daily comparison; the amount is 7."""

    at_s = 0

    async def total(self, lane: Lane, from_s: int, to_s: int) -> Seen:
        found = await super().total(lane, from_s, to_s)
        return replace(found, amount=found.amount - 7) if from_s <= self.at_s < to_s else found

    async def grouped(self, lane: Lane, by: Literal["hour", "day"], from_s: int, to_s: int) -> dict[int, Seen]:
        found = await super().grouped(lane, by, from_s, to_s)
        start_s = self.at_s - self.at_s % (DAY_S if by == "day" else HOUR_S)
        if start_s in found:
            found[start_s] = replace(found[start_s], amount=found[start_s].amount - 7)
        return found


async def compared(place: Forwarding, shown: Shown | None = None) -> list[tuple[str, int]]:
    """What the daily comparison repairs."""
    api = place.api()
    shown = shown or Shown(api, calls_per_s=100_000, pause_s=0)
    report = await Reconciler(place.ledger, api, Clock(), shown=shown, pause_s=0).run(repair=True)
    return [(repair.kind, repair.amount) for repair in report.repairs]


async def to_noon(place: Forwarding) -> int:
    """Go to half past twelve of the next day; when the hour began."""
    await place.to((place.now_s // DAY_S + 1) * DAY_S + 12 * HOUR_S + HOUR_S // 2)
    return place.now_s // HOUR_S * HOUR_S


async def restored(place: Forwarding) -> None:
    """The ledger is as it was at the backup, and everything counted comes to it again."""
    await place.restore()
    async with place.ledger.shard(zlib.crc32(b"a") % 16) as tx:
        assert tx is not None
        await distrust(tx, tenant="a")
    await place.count_again()


async def foreign(place: Forwarding) -> None:
    """Have the day differ by what nobody here sent."""
    await place.api().v1.billing.meter_events.create_async(
        {
            "event_name": "quota_api_calls",
            "identifier": "foreign",
            "payload": {"stripe_customer_id": place.customers["a"], "value": "3"},
            "timestamp": place.now_s - 2 * HOUR_S,
        }
    )


async def hours_pass(place: Forwarding, hours: int) -> None:
    """Let forwarding go on for some hours."""
    for _ in range(hours):
        await place.advance(HOUR_S)
        await place.forwarder().flush()


async def another_of_its_minute(place: Forwarding, hour_s: int | None = None) -> None:
    """Have another row decided for the minute of the first one of an hour, as in the first minute of every hour."""
    await place.count("a", 7, hour_s=hour_s)
    found = place.forwarder().outbox
    for shard in await found.due(now=True):
        await found.decide(shard)
    await place.sql(
        "update stripe_outbox as o set at = f.at from stripe_outbox as f"
        " where o.number = 2 and f.number = 1 and f.hour = o.hour"
    )


async def two_of_a_minute(place: Forwarding) -> None:
    """Two rows of one minute and amount: the first was taken and will be reported, the second counts, unanswered."""
    await refused_later(place, CODE)
    await another_of_its_minute(place)
    place.stripe.faults({"kind": "cut_after", "path": "/v1/billing/meter_events", "count": 1})
    await place.forwarder().pump()
    place.stripe.faults()
    assert await place.states() == {"delivered": 1, "waiting": 1}
    assert place.at_stripe() == {("a", "api_calls"): 7}
    await place.advance(30 * HOUR_S)


async def test_a_report_about_what_a_sum_was_explained_with_is_left_to_the_sums(place: Forwarding) -> None:
    await two_of_a_minute(place)
    for _ in range(2):
        await place.forwarder().flush()
    # The sum is taken for the first row, which was answered; the second one was sent again.
    assert [(row["state"], row["attempt"]) for row in await place.rows()] == [("delivered", 1), ("delivered", 2)]
    await place.agree()
    for _ in range(2):
        await handle(place)
        assert await place.states() == {"in_doubt": 1, "delivered": 1}
        await place.advance(HOUR_S)
        await place.forwarder().flush()
        assert [(row["state"], row["attempt"]) for row in await place.rows()] == [("delivered", 1), ("delivered", 2)]
        await place.agree()


async def test_a_report_that_comes_while_the_sums_are_asked_for_is_seen(place: Forwarding) -> None:
    await two_of_a_minute(place)

    class Reported(Summaries):
        async def total(self, work: Work, from_s: int, before_s: int) -> Decimal:
            found = await super().total(work, from_s, before_s)
            await handle(place)
            return found

    forwarder = place.forwarder()
    forwarder._summaries = Reported(place.api())
    await forwarder.flush(timeout_s=3)
    forwarder._summaries = Summaries(place.api())
    for _ in range(3):
        await place.advance(HOUR_S)
        await forwarder.flush()
    assert [(row["state"], row["attempt"]) for row in await place.rows()] == [("delivered", 2), ("delivered", 1)]
    await place.agree()


async def test_a_report_about_what_a_comparison_was_explained_with_is_left_to_the_sums(place: Forwarding) -> None:
    """The daily comparison finds that one of two equal rows is missing, and sends the one again that is not."""
    await to_noon(place)
    await place.count("a", 7)
    await place.forwarder().flush()
    await another_of_its_minute(place)
    place.stripe.faults({"kind": "async_error", "code": CODE, "path": "/v1/billing/meter_events", "count": 1})
    await place.forwarder().pump()
    await place.advance(HOUR_S)
    await place.count("a", 9)
    await place.forwarder().flush()
    await place.advance(HOUR_S)
    assert await compared(place) == [("sent_again", 7)]
    await place.forwarder().flush()
    assert [row["attempt"] for row in await place.rows()] == [2, 1, 1]
    await place.agree()
    await handle(place)
    assert (await place.rows())[1]["state"] == "in_doubt"
    await place.advance(HOUR_S)
    await place.forwarder().flush()
    await place.agree()


async def test_a_report_about_what_a_restored_ledger_was_compared_with_is_left_to_the_sums(place: Forwarding) -> None:
    """The hour agrees with Stripe by chance: what the restored ledger forgot is as much as what will be reported."""
    await refused_later(place, CODE)
    await place.back_up()
    await place.count("a", 7)
    await place.forwarder().flush()
    assert place.at_stripe() == {("a", "api_calls"): 7}
    await restored(place)
    await hours_pass(place, 3)
    assert await place.states() == {"delivered": 2}
    await place.agree()
    await handle(place)
    assert await place.states() == {"in_doubt": 1, "delivered": 1}
    await place.advance(HOUR_S)
    await place.forwarder().flush()
    assert await place.states() == {"delivered": 2}
    await place.agree()


async def test_what_was_sent_again_just_now_is_not_taken_for_what_the_sum_has(place: Forwarding) -> None:
    """The report comes before the sums show what was sent again: what they have is of the attempt before."""
    await two_of_a_minute(place)
    for _ in range(2):
        await place.forwarder().flush()
    await handle(place)
    forwarder = place.forwarder()
    forwarder._summaries = late = Late(place.api())
    late.hidden = Decimal(7)
    late.at_s = int((await place.rows())[1]["at"].timestamp())
    await forwarder.flush(timeout_s=2)
    assert [(row["state"], row["attempt"]) for row in await place.rows()] == [("in_doubt", 1), ("delivered", 2)]
    await hours_pass(place, 2)
    assert [(row["state"], row["attempt"]) for row in await place.rows()] == [("delivered", 1), ("delivered", 2)]
    await place.agree()


async def test_what_is_in_doubt_when_a_restored_ledger_is_compared_is_decided_anew(place: Forwarding) -> None:
    """A report that names nobody came before the comparison, which has the row's amount among what Stripe has."""
    await place.count("a", 7)
    await place.forwarder().flush()
    await place.back_up()
    await restored(place)
    lost = Told("quota_api_calls", {}, "of-another-program", 0, "v1")
    stream.report(place.stripe.standin.account, place.meters["api_calls"], [(lost, "archived_meter", "refused")] * 2)
    await handle(place)
    assert await place.states() == {"in_doubt": 1}
    await place.advance(HOUR_S)
    await place.count("a", 1)
    await place.forwarder().flush()
    await hours_pass(place, 4)
    assert await place.states() == {"delivered": 2}
    await place.agree()


async def test_a_window_whose_row_was_dropped_at_the_comparison_is_looked_at_again(place: Forwarding) -> None:
    """Nothing else of the tenant waits to be decided when its only row is dropped."""
    await refused_later(place, CODE)
    await place.back_up()
    await restored(place)
    await place.forwarder().flush()
    await handle(place)
    await hours_pass(place, 4)
    await place.agree()


async def test_a_restored_ledger_is_compared_by_hours(place: Forwarding) -> None:
    """A day agrees by chance, its hours do not."""
    await to_noon(place)
    await refused_later(place, CODE)
    await place.back_up()
    await place.advance(HOUR_S)
    await place.count("a", 7)
    await place.forwarder().flush()
    await restored(place)
    await hours_pass(place, 3)
    await handle(place)
    await hours_pass(place, 3)
    await place.agree()


async def test_the_daily_comparison_looks_at_the_whole_hour_where_a_sum_was_explained_before(place: Forwarding) -> None:
    noon_s = await to_noon(place)
    await refused_later(place, CODE)
    await place.back_up()
    await place.advance(120)
    await place.count("a", 7)
    await place.forwarder().flush()
    await restored(place)
    await hours_pass(place, 2)
    await place.agree()
    await place.count("a", 2, hour_s=noon_s)
    place.stripe.faults({"kind": "async_error", "code": CODE, "path": "/v1/billing/meter_events", "count": 1})
    await place.forwarder().flush()
    place.stripe.faults()
    await place.advance(HOUR_S)
    await place.count("a", 9)
    await hours_pass(place, 2)
    assert await compared(place) == [("sent_again", 2)]
    await place.forwarder().flush()
    await place.agree()


async def test_rows_that_an_hour_lacks_are_all_sent_again(place: Forwarding) -> None:
    await to_noon(place)
    for amount in (1, 2, 3, 4, 4):
        await place.count("a", amount)
        kind = {"kind": "async_error", "code": CODE, "path": "/v1/billing/meter_events", "count": 1}
        place.stripe.faults(*([kind] if amount > 2 else []))
        await place.forwarder().flush()
        await place.advance(180)
    place.stripe.faults()
    await place.advance(HOUR_S)
    await place.count("a", 9)
    await hours_pass(place, 2)
    assert sorted(await compared(place)) == [("sent_again", 3), ("sent_again", 4), ("sent_again", 4)]
    await place.forwarder().flush()
    await place.agree()


async def test_a_parked_row_is_not_taken_for_arrived_by_what_was_sent_meanwhile(place: Forwarding) -> None:
    await to_noon(place)
    await refused_later(place, "meter_event_invalid_value")
    await handle(place)
    assert await place.states() == {"parked": 1}
    await place.sql("update stripe_outbox set first_sent = last_sent")
    await another_of_its_minute(place)

    class Sent(LateShown):
        async def grouped(self, lane: Lane, by: Literal["hour", "day"], from_s: int, to_s: int) -> dict[int, Seen]:
            if by == "hour":
                await place.forwarder().pump()
            return await Shown.grouped(self, lane, by, from_s, to_s)

    await foreign(place)
    assert await compared(place, Sent(place.api(), calls_per_s=100_000, pause_s=0)) == []
    assert await place.states() == {"parked": 1, "delivered": 1}


async def test_the_daily_comparison_blames_no_row_for_one_that_need_not_show_yet(place: Forwarding) -> None:
    noon_s = await to_noon(place)
    await place.count("a", 7)
    await place.forwarder().flush()
    await place.advance(HOUR_S)
    place.stripe.faults({"kind": "async_error", "code": CODE, "path": "/v1/billing/meter_events", "count": 1})
    await place.count("a", 2)
    await place.forwarder().flush()
    place.stripe.faults()
    await place.advance(HOUR_S)
    await place.count("a", 9)
    await place.forwarder().flush()
    await place.advance(HOUR_S)
    await another_of_its_minute(place, noon_s)
    await place.forwarder().pump()
    shown = LateShown(place.api(), calls_per_s=100_000, pause_s=0)
    shown.at_s = int((await place.rows())[0]["at"].timestamp())
    assert await compared(place, shown) == [("sent_again", 2)]
    await place.forwarder().flush()
    await place.agree()


async def test_a_report_that_comes_after_days_is_read_off_the_sums_for_days(place: Forwarding) -> None:
    await refused_later(place, CODE)
    await place.sql("update stripe_outbox set summed = true")
    await place.advance(4 * DAY_S)
    await place.count("a", 1)
    await place.forwarder().flush()
    await handle(place)
    forwarder = place.forwarder()
    forwarder._summaries = late = Late(place.api())
    late.hidden = Decimal(1)
    late.at_s = int((await place.rows())[-1]["at"].timestamp())
    await forwarder.flush(timeout_s=2)
    assert await place.states() == {"in_doubt": 1, "delivered": 1}
    await hours_pass(place, 3)
    await place.agree()
