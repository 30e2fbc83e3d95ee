"""Tenants in memory: who makes room for whom, and which snapshot of them is in force."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from sidecar.enforcement.directory import EVICTION_LOOKS, Directory
from sidecar.store import snapshots
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
        known.renew(known.accounts[name], b"")
    assert known._to_refresh() == ["t7", "t9", "t0", "t1"]
    assert list(known._refreshing) == names


def test_a_newer_snapshot_that_comes_with_an_answer_is_in_force_at_once() -> None:
    known = directory()
    admit(known, "acme")
    account = known.accounts["acme"]
    known.renew(account, snapshots.encode(plan(tenant="acme", rev=7)))
    assert (account.rev, account.touched, known._to_refresh()) == (7, True, [])
    known.renew(account, snapshots.encode(plan(tenant="acme", rev=5)))
    assert account.rev == 7


def test_a_childs_newer_snapshot_is_in_force_at_once_if_its_parent_is_in_memory() -> None:
    known = directory()
    admit(known, "child", "org")
    child = known.accounts["child"]
    document = snapshots.encode(plan(tenant="child", rev=2, parent="org"))
    known.renew(child, document)
    assert (child.rev, child.parent, known.accounts["org"].has_children) == (2, known.accounts["org"], True)
    known.renew(child, snapshots.encode(plan(tenant="child", rev=3, parent="child")))
    assert (child.rev, child.parent) == (3, None)


@pytest.mark.parametrize("document", [b"", b"\xc1", snapshots.encode(plan(tenant="acme", rev=2, parent="elsewhere"))])
def test_a_tenant_whose_newer_snapshot_is_not_all_there_is_looked_up(document: bytes) -> None:
    known = directory()
    admit(known, "acme")
    known.renew(known.accounts["acme"], document)
    assert (known.accounts["acme"].rev, known._to_refresh()) == (1, ["acme"])


def test_a_snapshot_is_not_put_in_force_of_an_account_that_was_replaced() -> None:
    known = directory()
    admit(known, "acme")
    former = known.accounts.pop("acme")
    admit(known, "acme")
    known.renew(former, snapshots.encode(plan(tenant="acme", rev=2)))
    assert (former.rev, known.accounts["acme"].rev, known._to_refresh()) == (1, 1, ["acme"])
