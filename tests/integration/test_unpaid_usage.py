"""Usage of a time that nobody pays for never becomes payable because it comes late."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from sidecar.billing.reconciliation.reconciler import Reconciler
from sidecar.billing.reconciliation.shown import Shown
from sidecar.catalogue.period import bounds
from sidecar.clock import Clock
from tests.servers.forwarding import DAY_S, HOUR_S, Forwarding


async def unpaid(place: Forwarding, hours_late: int = 50, **subscribed: Any) -> tuple[int, int]:
    """Count usage of a period's last day after it has closed; when the period ended, and the hour of the usage."""
    start_s = place.now_s // HOUR_S * HOUR_S
    await place.tenants(["a"], anchor_s=start_s - 10 * DAY_S, subscribed=False)
    ends_s = bounds("billing", place.now_s, start_s - 10 * DAY_S, 1)[1]
    shift: dict[str, Any] = {name: at + ends_s if isinstance(at, int) else at for name, at in subscribed.items()}
    if "trial_s" in shift:
        shift["trial_s"] = tuple(at + ends_s for at in shift["trial_s"])
    if subscribed:
        await place.subscribe("a", **shift)
    await place.to(ends_s + hours_late * HOUR_S)
    hour_s = ends_s // HOUR_S * HOUR_S - DAY_S
    await place.count("a", 4, hour_s=hour_s)
    await place.forwarder().flush()
    return ends_s, hour_s


async def only_row(place: Forwarding) -> Any:
    [row] = await place.rows()
    return row


@pytest.mark.parametrize(
    "subscribed",
    [
        pytest.param({"made_s": -20 * DAY_S, "trial_s": (-20 * DAY_S, 0)}, id="a trial"),
        pytest.param({"made_s": 3_600}, id="before the subscription"),
        pytest.param({"made_s": -20 * DAY_S, "ended_s": -2 * DAY_S, "status": "canceled"}, id="after its end"),
        pytest.param({"made_s": -20 * DAY_S, "status": "incomplete"}, id="a subscription nobody paid"),
        pytest.param({}, id="no subscription"),
    ],
)
async def test_late_usage_of_a_time_nobody_pays_for_stays_in_that_time(
    place: Forwarding, subscribed: dict[str, Any]
) -> None:
    _, hour_s = await unpaid(place, **subscribed)
    row = await only_row(place)
    assert (row["state"], row["late"]) == ("delivered", False)
    assert hour_s <= row["at"].timestamp() < hour_s + HOUR_S
    await place.agree()
    assert place.refusals() == []


@pytest.mark.parametrize(
    "subscribed",
    [
        pytest.param({"made_s": -20 * DAY_S}, id="subscribed"),
        pytest.param({"made_s": -30 * DAY_S, "trial_s": (-30 * DAY_S, -9 * DAY_S)}, id="after the trial"),
        pytest.param({"made_s": -30 * DAY_S, "trial_s": (-HOUR_S, DAY_S)}, id="before a trial that came later"),
        pytest.param({"made_s": -20 * DAY_S, "ended_s": HOUR_S, "status": "canceled"}, id="before its end"),
    ],
)
async def test_late_usage_of_a_time_that_is_paid_for_is_billed_in_the_running_period(
    place: Forwarding, subscribed: dict[str, Any]
) -> None:
    ends_s, _ = await unpaid(place, **subscribed)
    row = await only_row(place)
    assert (row["state"], row["late"]) == ("delivered", True)
    assert row["at"].timestamp() >= ends_s
    await place.agree()


async def test_what_is_too_old_for_stripe_and_nobody_pays_for_is_set_aside_and_explained(place: Forwarding) -> None:
    start_s = place.now_s // HOUR_S * HOUR_S
    await place.tenants(["a"], anchor_s=start_s - 60 * DAY_S, subscribed=False)
    await place.sql("update tenants set interval_months = 12")
    await place.subscribe("a", made_s=start_s - 60 * DAY_S, trial_s=(start_s - 60 * DAY_S, start_s - 30 * DAY_S))
    await place.count("a", 4, hour_s=start_s - 40 * DAY_S)
    await place.count("a", 5, hour_s=start_s - 33 * DAY_S)
    await place.count("a", 6)
    forwarder = place.forwarder()
    await forwarder.flush()
    assert await place.states() == {"unbillable": 1, "delivered": 2}
    assert forwarder.counters.reading()["sidecar_stripe_deltas_total"]["unbillable",] == [1]
    assert place.at_stripe() == {("a", "api_calls"): Decimal(11)}
    api = place.api()
    shown = Shown(api, calls_per_s=100_000, pause_s=0)
    report = await Reconciler(place.ledger, api, Clock(), shown=shown, pause_s=0).run(repair=True, asked=True)
    assert not report.bad
    assert report.repairs == ()
    assert [line.explained["unbillable"] for line in report.lines if "unbillable" in line.explained] == [-4]
    await place.count("a", 3, hour_s=start_s - 40 * DAY_S)
    assert await forwarder.flush_tenant("a") == 0, "nothing is open"
    assert [(row["amount"], row["number"]) for row in await place.rows() if row["state"] == "unbillable"] == [
        (4, 1),
        (3, 2),
    ]


async def test_a_delta_of_a_trial_that_could_not_be_sent_in_time_is_not_moved_to_where_it_is_paid_for(
    place: Forwarding,
) -> None:
    start_s = place.now_s // HOUR_S * HOUR_S
    await place.tenants(["a"], anchor_s=start_s - 25 * DAY_S, subscribed=False)
    await place.subscribe("a", made_s=start_s - 25 * DAY_S, trial_s=(start_s - 25 * DAY_S, start_s + DAY_S))
    await place.count("a", 4)
    forwarder = place.forwarder()
    await forwarder.decide()
    assert await place.states() == {"waiting": 1}
    await place.advance(20 * DAY_S)
    await forwarder.flush()
    row = await only_row(place)
    assert (row["state"], row["late"]) == ("delivered", False)
    assert row["at"].timestamp() < start_s + HOUR_S
    await place.agree()


async def test_a_delta_of_a_trial_that_becomes_too_old_on_its_way_is_set_aside(place: Forwarding) -> None:
    start_s = place.now_s // HOUR_S * HOUR_S
    await place.tenants(["a"], anchor_s=start_s - 25 * DAY_S, subscribed=False)
    await place.subscribe("a", made_s=start_s - 25 * DAY_S, trial_s=(start_s - 25 * DAY_S, start_s + DAY_S))
    await place.count("a", 4)
    forwarder = place.forwarder()
    await forwarder.decide()
    await place.advance(36 * DAY_S)
    await forwarder.flush()
    row = await only_row(place)
    assert row["state"] == "unbillable"
    assert "nobody pays" in row["reason"]
    assert place.at_stripe() == {}
