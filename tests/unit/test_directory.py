"""Tenants in memory: who makes room for whom, and which snapshot of them is in force."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest import mock

import pytest

from sidecar.enforcement.directory import BUSY_PER_MS, EVICTION_LOOKS, GIVE_WAY_S, REFRESHES_AT_ONCE, Directory
from sidecar.store import snapshots
from sidecar.telemetry import CoreCounters
from tests.properties.models.deciding import World
from tests.unit.tenants import HARD, NOON_S, ONE, applied, composed, exchange, lease, limit, plan, reply

MOST = 3
REAL_SLEEP = asyncio.sleep


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


def test_what_changed_for_those_who_ask_is_read_before_the_rest() -> None:
    known = directory(100)
    names = [f"t{number}" for number in range(20)]
    admit(known, *names)
    known.accounts["t9"].exchange.touch(known.accounts["t9"])
    for name in names:
        known.changed("tenant", name)
    assert known._to_refresh() == ["t9", "t0", "t1", "t2"]


async def test_who_is_in_use_is_read_before_the_rest_when_everything_may_have_changed() -> None:
    known = directory(100)
    admit(known, *(f"t{number}" for number in range(20)))
    known.accounts["t9"].exchange.touch(known.accounts["t9"])
    await known.changed_all()
    assert known._to_refresh() == ["t9", "t0", "t1", "t2"]


def test_who_is_refused_is_read_before_the_rest_with_its_parent_if_it_may_have_changed() -> None:
    """A refused request leaves no trace by which it could be told that the tenant is in use."""
    known = directory(100)
    admit(known, *(f"t{number}" for number in range(20)))
    for number in range(10):
        known.changed("tenant", f"t{number}")
    known.refused(known.accounts["t7"], ((known.accounts["t8"], 1),))
    known.refused(known.accounts["t15"], ())
    assert known._to_refresh() == ["t7", "t8", "t0", "t1"]


@pytest.mark.parametrize(("status", "first"), [("unpaid", "acme"), ("active", "t0")])
def test_a_refusal_has_what_changed_of_the_tenant_read_before_the_rest(status: str, first: str) -> None:
    world = World(fast=False)
    admit(world.directory, "t0")
    world.adopt(plan(status=status))
    for name in ("t0", "acme"):
        world.directory.changed("tenant", name)
    world.ask(0, b"")
    assert world.directory._to_refresh()[0] == first


def test_who_knows_only_the_default_plan_is_read_before_the_rest_once_it_is_in_use() -> None:
    """Its snapshots have one revision, so no answer tells that there is another."""
    known = directory(100)
    for number in range(20):
        known._admit(plan(tenant=f"t{number}", rev=0), None)
        known.changed("tenant", f"t{number}")
    [shard] = known._exchanges
    account = known.accounts["t9"]
    account.charge(ONE, "", "", NOON_S)
    shard.touch(account)
    message, sent = composed(shard, 1_000)
    applied(shard, message, sent, reply(message, lease(0), revision=0), 1_000, 1_000)
    for one, document in shard.stale:
        known.renew(one, document)
    assert known._to_refresh() == ["t9", "t0", "t1", "t2"]


@pytest.mark.parametrize(
    ("decided", "pauses"), [(0, 0), (BUSY_PER_MS // REFRESHES_AT_ONCE, 0), (BUSY_PER_MS + 1, 1 + REFRESHES_AT_ONCE)]
)
async def test_look_ups_in_the_background_give_way_to_many_decisions(decided: int, pauses: int) -> None:
    known = directory(100)
    admit(known, *(f"t{number}" for number in range(2 * REFRESHES_AT_ONCE)))
    for account in known.accounts.values():
        known.refresh(account)

    async def looked_up(tenant: str) -> bool:
        del known._refreshing[tenant]
        known._counters.snapshot_hits += decided
        if not known._refreshing:
            known._wake.clear()
        return True

    slept: list[float] = []
    with (
        mock.patch.object(known, "_refresh", looked_up),
        mock.patch.object(known._clock, "monotonic_ms", return_value=1),
        mock.patch("sidecar.enforcement.directory.asyncio.sleep", side_effect=slept.append),
    ):
        running = asyncio.create_task(known.run())
        for _ in range(20):
            await REAL_SLEEP(0)
        running.cancel()
    assert (slept, known._to_refresh()) == ([GIVE_WAY_S] * pauses, [])


@pytest.mark.parametrize(
    ("used", "left", "change", "touched"),
    [
        (0, 30, {"stop": 200, "included": 200}, False),
        (100, 0, {"stop": 200, "included": 200}, True),  # refused so far: Redis has to say what is left now
        (0, 30, {"stop": 50, "included": 50}, True),  # what it held goes back
        (0, 0, {"stop": 50, "included": 50}, False),
    ],
)
def test_a_changed_plan_is_reported_at_once_only_where_it_matters(
    used: int, left: int, change: dict[str, object], *, touched: bool
) -> None:
    """Or each of ten thousand tenants of a plan would be reported, whoever asks for them."""
    known = directory()
    admit(known, "acme")
    account = known.accounts["acme"]
    [(_, state, _)] = account.charge(ONE, "", "", NOON_S).limits
    state.used, state.left, state.known = used, left, True
    known._admit(plan(limit(HARD, **change), tenant="acme", rev=2), None)
    assert account.touched is touched


def test_a_tenant_that_redis_did_not_know_is_reported_when_it_does() -> None:
    known = directory()
    admit(known, "acme")
    account = known.accounts["acme"]
    account.provisional = True
    admit(known, "acme")
    assert (account.touched, account.provisional) == (True, False)


def test_a_newer_snapshot_that_comes_with_an_answer_is_in_force_at_once() -> None:
    known = directory()
    admit(known, "acme")
    account = known.accounts["acme"]
    known.renew(account, snapshots.encode(plan(tenant="acme", rev=7)))
    assert (account.rev, known._to_refresh()) == (7, [])
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
