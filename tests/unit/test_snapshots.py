"""Snapshots as sidecars keep them."""

from __future__ import annotations

import msgspec

from sidecar.store import snapshots
from tests.unit.tenants import HARD, limit, plan


def test_a_snapshot_is_read_as_it_was_written() -> None:
    for snapshot in (
        plan(HARD),
        plan(limit(HARD, stop=50)),
        plan(features={"seats": 1}),
        plan(features={"seats": True}),
    ):
        read = snapshots.decode(snapshots.encode(snapshot))
        assert msgspec.json.encode(read) == msgspec.json.encode(snapshot)
