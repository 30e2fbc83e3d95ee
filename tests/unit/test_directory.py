"""Tenants in memory: who makes room for whom."""

from __future__ import annotations

from typing import Any
from unittest import mock

from sidecar.enforcement.directory import EVICTION_LOOKS, Directory
from sidecar.telemetry import CoreCounters
from tests.unit.tenants import exchange, plan

MOST = 3


def directory(most: int = MOST) -> Directory:
    """One without a store, whose tenants are all in one shard."""
    store: Any = mock.Mock()
    store.keys.shard_of.return_value = 0
    return Directory([exchange()], store, mock.Mock(), CoreCounters(), tenants_max=most, keys_max=MOST)


def admit(known: Directory, *tenants: str) -> None:
    for tenant in tenants:
        known._admit(plan(tenant=tenant), None)


def test_the_oldest_tenant_with_nothing_to_report_makes_room() -> None:
    known = directory()
    admit(known, "a", "b", "c", "d", "e")
    assert list(known.accounts) == ["c", "d", "e"]
    known.accounts["c"].touched = True
    admit(known, "f")
    assert list(known.accounts) == ["e", "c", "f"]


def test_a_tenant_that_left_and_came_back_is_not_the_oldest() -> None:
    known = directory()
    admit(known, "a", "b", "c", "d")  # "a" left
    admit(known, "a")  # and so did "b"
    assert list(known.accounts) == ["c", "d", "a"]
    admit(known, "e", "f")
    assert list(known.accounts) == ["a", "e", "f"]


def test_no_more_than_a_few_are_looked_at_for_one_that_comes() -> None:
    known = directory(2 * EVICTION_LOOKS)
    admit(known, *(f"t{number}" for number in range(2 * EVICTION_LOOKS)))
    for account in known.accounts.values():
        account.touched = True
    with mock.patch.object(known.accounts["t0"].exchange, "forget", return_value=False) as forget:
        assert not known._has_room()
    assert forget.call_count == EVICTION_LOOKS


def test_tenants_in_use_are_refreshed_before_all_that_changed_and_those_are_not_forgotten() -> None:
    """After an applied catalogue: Redis takes no report of a tenant, and grants it nothing, until it was read again."""
    known = directory(100)
    names = [f"t{number}" for number in range(20)]
    admit(known, *names)
    for name in names:
        known.changed("tenant", name)
    for name in ("t7", "t9", "t8"):
        known.refresh_next(known.accounts[name])
    assert known._to_refresh() == ["t7", "t9", "t0", "t1"]
    assert list(known._refreshing) == names
