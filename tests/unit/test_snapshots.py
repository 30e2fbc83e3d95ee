"""Snapshots as sidecars keep them."""

from __future__ import annotations

import msgspec

from sidecar.store import snapshots
from tests.unit.tenants import HARD, limit, plan


def test_tenants_of_one_plan_share_its_limits_and_features() -> None:
    features: dict[str, str | int | bool] = {"branding": "custom"}
    one, other = (
        snapshots.decode(snapshots.encode(plan(HARD, tenant=name, features=features, forward=("branding",))))
        for name in ("acme", "globex")
    )
    assert one.limits is other.limits
    assert one.features is other.features
    assert one.forward is other.forward
    assert (one.tenant, other.tenant) == ("acme", "globex")


def test_what_differs_is_not_shared() -> None:
    for first, second in (
        (plan(HARD), plan(limit(HARD, stop=50))),
        (plan(features={"seats": 1}), plan(features={"seats": True})),
        (plan(features={"a": "b"}), plan(features={"a": "c"})),
    ):
        for snapshot in (first, second, first):
            read = snapshots.decode(snapshots.encode(snapshot))
            assert msgspec.json.encode(read) == msgspec.json.encode(snapshot)


def test_what_is_shared_is_bounded() -> None:
    for units in range(snapshots.SHARED_MAX + 2):
        snapshots.decode(snapshots.encode(plan(limit(HARD, stop=units + 1))))
    assert len(snapshots._shared) <= snapshots.SHARED_MAX
