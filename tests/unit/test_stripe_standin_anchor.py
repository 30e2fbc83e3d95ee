"""When the stand-in takes a subscription's anchor for one of the past."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sidecar.embedded.stripe.account import Account
from sidecar.embedded.stripe.errors import Refused
from sidecar.embedded.stripe.subscriptions import _first_periods

NOW_S = 1_772_366_400


@pytest.fixture
def account() -> Account:
    clock: Any = SimpleNamespace(now_ms=lambda: NOW_S * 1000, now_s=lambda: NOW_S)
    return Account(clock)


def anchored(anchor_s: int) -> dict[str, Any]:
    return {"billing_cycle_anchor": anchor_s, "items": {"data": []}, "status": "active"}


def test_an_anchor_that_nobody_gave_may_be_of_the_second_before(account: Account) -> None:
    assert _first_periods(account, anchored(NOW_S - 1), {}) == []


def test_an_anchor_that_somebody_gave_must_be_in_the_future(account: Account) -> None:
    with pytest.raises(Refused, match="must be in the future"):
        _first_periods(account, anchored(NOW_S - 1), {"billing_cycle_anchor": NOW_S - 1})
