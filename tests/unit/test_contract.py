"""What tenants of one plan share."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.enforcement import contract as module
from sidecar.enforcement.contract import Contract, contract
from sidecar.store import snapshots
from tests.unit.tenants import HARD, limit, plan


def read(**changes: Any) -> Contract:
    """That of a snapshot which was read from Redis."""
    said: dict[str, Any] = {"features": {"seats": True, "export": "csv"}, "forward": ("seats",)} | changes
    return contract(snapshots.decode(snapshots.encode(plan(*said.pop("limits", (HARD,)), **said))))


def test_tenants_of_one_plan_have_the_same_contract() -> None:
    assert read(tenant="acme", rev=3, anchor_s=7) is read(tenant="globex", rev=4, anchor_s=8, parent="acme")


@pytest.mark.parametrize(
    "change",
    [
        {"limits": (limit(HARD, stop=50),)},
        {"features": {"seats": 1, "export": "csv"}},
        {"features": {"seats": True, "export": "json"}},
        {"forward": ("export",)},
        {"plan": "large"},
        {"status": "unpaid"},
        {"status_until_s": 5},
        {"interval_months": 12},
        {"shadow": True},
    ],
)
def test_what_differs_is_not_shared(change: dict[str, Any]) -> None:
    first, second = read(), read(**change)
    assert first is not second
    assert read() is first
    for name in change.keys() - {"features", "forward"}:
        assert getattr(second, name) == change[name]


def test_a_feature_that_is_one_is_not_one_that_is_true() -> None:
    for value in (1, True, 1):
        found = read(features={"seats": value})
        assert type(found.features["seats"]) is type(value)
        assert found.forwarded == (("seats", str(value).lower()),)


def test_what_is_shared_is_bounded() -> None:
    for units in range(module.SHARED_MAX + 2):
        contract(plan(limit(HARD, stop=units + 1)))
    assert len(module._shared) <= module.SHARED_MAX
