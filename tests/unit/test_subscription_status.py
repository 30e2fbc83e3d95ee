from __future__ import annotations

import itertools
from typing import Any

import pytest

from sidecar.billing.subscriptions.standing import DAY_S, TRIAL_SLACK_S, Standing, Subscription, decisive, standing
from sidecar.catalogue.model import Plan

NOW_S = 1_800_000_000
OWED_S = NOW_S - 3 * DAY_S
PLANS = {
    "free": Plan(name="free"),
    "strict": Plan(name="strict"),
    "patient": Plan(name="patient", past_due_grace_days=7),
    "falling": Plan(name="falling", past_due_grace_days=7, past_due_plan="free"),
}


def sub(status: str, plan: str = "patient", **more: Any) -> Subscription:
    fields: dict[str, Any] = {"id": "sub_1", "made_s": 100, "anchor_s": 100, "owed_since_s": OWED_S} | more
    return Subscription(tenant="acme", customer="cus_1", plan=plan, status=status, **fields)


def given(*found: Subscription, now_s: int = NOW_S) -> tuple[str, str, int] | None:
    one = standing(found, PLANS, now_s)
    return None if one is None else (one.plan, one.status, one.until_s)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (sub("active"), ("patient", "active", 0)),
        (sub("trialing", trial_end_s=NOW_S), ("patient", "trialing", NOW_S + TRIAL_SLACK_S)),
        (sub("past_due"), ("patient", "past_due", OWED_S + 7 * DAY_S)),
        (sub("past_due", "strict"), ("strict", "suspended", 0)),
        (sub("unpaid"), ("patient", "unpaid", 0)),
        (sub("unpaid", "falling"), ("free", "active", 0)),
        (sub("canceled"), ("patient", "cancelled", 0)),
        (sub("canceled", "falling"), ("falling", "cancelled", 0)),
        (sub("canceled", "falling", ended_because="payment_failed"), ("free", "active", 0)),
        (sub("canceled", ended_because="payment_failed"), ("patient", "cancelled", 0)),
        (sub("paused"), ("patient", "paused", 0)),
        (sub("incomplete"), None),
        (sub("incomplete_expired"), None),
        (sub("a_word_of_tomorrow"), None),
    ],
)
def test_each_status_of_stripe_has_one_meaning(found: Subscription, expected: tuple[str, str, int] | None) -> None:
    assert given(found) == expected


def test_the_grace_ends_to_the_second_and_then_the_plan_falls_or_is_suspended() -> None:
    end_s = OWED_S + 7 * DAY_S
    assert given(sub("past_due"), now_s=end_s - 1) == ("patient", "past_due", end_s)
    assert given(sub("past_due"), now_s=end_s) == ("patient", "suspended", 0)
    assert given(sub("past_due", "falling"), now_s=end_s - 1) == ("falling", "past_due", end_s)
    assert given(sub("past_due", "falling"), now_s=end_s) == ("free", "active", 0)


def test_the_grace_counts_from_the_oldest_unpaid_invoice_and_without_one_from_the_period() -> None:
    unknown = sub("past_due", owed_since_s=0, period_start_s=NOW_S - DAY_S)
    assert given(unknown) == ("patient", "past_due", NOW_S + 6 * DAY_S)


def test_a_price_no_plan_has_any_more_leaves_the_plan_and_still_gives_the_status() -> None:
    assert given(sub("active", "retired")) == ("", "active", 0)
    assert given(sub("past_due", "retired")) == ("", "suspended", 0)
    assert given(sub("unpaid", "")) == ("", "unpaid", 0)


def test_the_newest_living_subscription_decides_whatever_the_order() -> None:
    old = sub("canceled", id="sub_old", made_s=1)
    new = sub("active", "falling", id="sub_new", made_s=2)
    later = sub("incomplete", "strict", id="sub_later", made_s=3)
    for order in itertools.permutations((old, new, later)):
        assert given(*order) == ("falling", "active", 0)
    assert given(sub("canceled", made_s=9, id="sub_z"), new) == ("falling", "active", 0)
    assert decisive([old, sub("canceled", id="sub_2", made_s=5)]) == sub("canceled", id="sub_2", made_s=5)
    assert decisive([later]) is None
    assert standing([], PLANS, NOW_S) is None


def test_billing_periods_start_where_the_subscription_says() -> None:
    assert standing([sub("active", anchor_s=12345)], PLANS, NOW_S) == Standing(
        plan="patient", status="active", anchor_s=12345
    )
