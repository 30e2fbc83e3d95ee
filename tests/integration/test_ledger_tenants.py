from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from sidecar.catalogue.snapshot import LimitRule, Snapshot
from sidecar.errors import Conflict, LedgerRefused, NotFound
from sidecar.ledger import audit, keys, plans, tenants
from sidecar.ledger.connection import Ledger
from sidecar.ledger.tenants import TenantRow

BURST = LimitRule("burst", "api_calls", "hour", "route", (), 60, 60, "deny", 0, "closed", 0, shadow=False)
CALLS = LimitRule("calls", "api_calls", "month", "tenant", (), 1000, None, "grace", 86_400, "open", 0, shadow=False)


@pytest.fixture
async def ledger(database: str) -> AsyncIterator[Ledger]:
    opened = await Ledger.open(database, shards=1)
    yield opened
    await opened.close()


def snapshot(row: TenantRow, *limits: LimitRule) -> Snapshot:
    return Snapshot(
        row.tenant, row.rev, row.plan, row.status, 0, row.parent, row.anchor_s, 3, {}, (), row.shadow, limits
    )


async def pending(ledger: Ledger) -> list[str]:
    async with ledger.shard(0) as tx:
        assert tx is not None
        return [row.tenant for row in await tx.pending_tenants(100)]


async def project(ledger: Ledger, *limits: LimitRule) -> None:
    async with ledger.shard(0) as tx:
        assert tx is not None
        await tx.mark_projected([snapshot(row, *limits) for row in await tx.pending_tenants(100)])


async def test_a_tenant_put_twice_is_the_same_tenant(ledger: Ledger) -> None:
    async with ledger.transaction() as tx:
        first = await tenants.put(tx, "acme", plan="free", actor="op", anchor_s=1_000_000, shadow=True)
        again = await tenants.put(tx, "acme", plan="free", actor="op")
        entries = await audit.read(tx, tenant="acme")
    assert again == first
    assert (first.plan, first.status, first.anchor_s, first.shadow, first.origin) == (
        "free",
        "active",
        1_000_000,
        True,
        "put",
    )
    assert [entry.action for entry in entries] == ["tenant.put", "tenant.create"]


async def test_every_change_raises_the_revision_and_waits_until_it_is_projected(ledger: Ledger) -> None:
    async with ledger.transaction() as tx:
        row = await tenants.put(tx, "acme", plan="free", actor="op")
        for change in (
            tenants.change_plan(tx, "acme", "pro", actor="op", reason="upgrade"),
            tenants.set_status(tx, "acme", "past_due", actor="stripe", until_s=2_000_000_000),
            tenants.override(tx, "acme", "limits", {"api_calls": {"included": 5}}, actor="op"),
            tenants.override(tx, "acme", "limits", None, actor="op"),
        ):
            changed = await change
            assert changed.rev > row.rev
            row = changed
        assert (row.plan, row.status, row.status_until_s, row.overrides) == ("pro", "past_due", 2_000_000_000, {})
        assert [
            (change.from_plan, change.to_plan, change.reason) for change in await tenants.plan_changes(tx, "acme")
        ] == [("free", "pro", "upgrade")]
    assert await pending(ledger) == ["acme"]
    await project(ledger)
    assert await pending(ledger) == []
    async with ledger.transaction() as tx:
        await tenants.set_status(tx, "acme", "past_due", actor="stripe", until_s=2_000_000_000)
    assert await pending(ledger) == []


async def test_a_tenant_that_changed_while_it_was_projected_stays_pending(ledger: Ledger) -> None:
    async with ledger.transaction() as tx:
        old = await tenants.put(tx, "acme", plan="free", actor="op")
    async with ledger.transaction() as tx:
        new = await tenants.change_plan(tx, "acme", "pro", actor="op")
    async with ledger.shard(0) as shard:
        assert shard is not None
        await shard.mark_projected([snapshot(old, CALLS)])
    assert await pending(ledger) == ["acme"]
    async with ledger.shard(0) as shard:
        assert shard is not None
        await shard.mark_projected([snapshot(new, BURST, CALLS)])
        await shard.mark_projected([snapshot(old)])
        limits = [row["limit_name"] for row in await shard._connection.fetch("select limit_name from usage_quotas")]
        row = await tenants.show(shard, "acme")
    assert (row.projected_rev, row.interval_months) == (new.rev, 3)
    assert sorted(limits) == ["burst", "calls"]


async def test_a_change_decided_on_an_old_revision_is_a_conflict(ledger: Ledger) -> None:
    async with ledger.transaction() as tx:
        row = await tenants.put(tx, "acme", plan="free", actor="op")
        await tenants.change_plan(tx, "acme", "pro", actor="a", rev=row.rev)
        with pytest.raises(Conflict, match="revision"):
            await tenants.change_plan(tx, "acme", "max", actor="b", rev=row.rev)
        with pytest.raises(Conflict, match="revision"):
            await tenants.override(tx, "acme", "shadow", value=True, actor="b", rev=row.rev)
        assert (await tenants.show(tx, "acme")).plan == "pro"


async def test_of_two_changes_at_once_both_are_kept(ledger: Ledger) -> None:
    async with ledger.transaction() as tx:
        await tenants.put(tx, "acme", plan="free", actor="op")

    async def override(number: int) -> None:
        async with ledger.transaction() as tx:
            await tenants.override(tx, "acme", f"limit-{number}", {"included": number}, actor="op")

    await asyncio.gather(*(override(number) for number in range(8)))
    async with ledger.transaction() as tx:
        row = await tenants.show(tx, "acme")
        assert set(row.overrides) == {f"limit-{number}" for number in range(8)}
        assert len(await audit.read(tx, tenant="acme")) == 9


async def test_a_tenant_never_becomes_its_own_ancestor(ledger: Ledger) -> None:
    async with ledger.transaction() as tx:
        await tenants.put(tx, "org", plan="pro", actor="op")
        await tenants.put(tx, "team", plan="pro", actor="op", parent="org")
        await tenants.put(tx, "user", plan="pro", actor="op", parent="team")
        for parent in ("org", "team", "user"):
            with pytest.raises(Conflict, match="descends"):
                await tenants.put(tx, "org", plan="pro", actor="op", parent=parent)
        with pytest.raises(NotFound):
            await tenants.put(tx, "org", plan="pro", actor="op", parent="nobody")
        assert (await tenants.put(tx, "user", plan="pro", actor="op", parent="")).parent == ""


@pytest.mark.parametrize("tenant", ["", "x" * 129, "ü" * 65])
async def test_an_id_that_is_empty_or_too_long_is_refused(ledger: Ledger, tenant: str) -> None:
    async with ledger.transaction() as tx:
        with pytest.raises(Conflict, match="128"):
            await tenants.put(tx, tenant, plan="free", actor="op")


@pytest.mark.parametrize("tenant", ["a\nb", "a\x00b", "\x7f", " a", "a ", "\u202ea", "\ud800"])
async def test_an_id_that_no_header_can_carry_is_refused_with_the_reason(ledger: Ledger, tenant: str) -> None:
    with pytest.raises(Conflict, match="is no tenant id"):
        async with ledger.transaction() as tx:
            await tenants.put(tx, tenant, plan="free", actor="test")


async def test_tenants_are_listed_by_pages(ledger: Ledger) -> None:
    async with ledger.transaction() as tx:
        for number in range(5):
            await tenants.put(tx, f"t{number}", plan="pro" if number % 2 else "free", actor="op")
        await tenants.set_status(tx, "t3", "suspended", actor="op")
        assert [row.tenant for row in await tenants.page(tx, most=2)] == ["t0", "t1"]
        assert [row.tenant for row in await tenants.page(tx, after="t1", most=2)] == ["t2", "t3"]
        assert [row.tenant for row in await tenants.page(tx, plan="pro")] == ["t1", "t3"]
        assert [row.tenant for row in await tenants.page(tx, status="suspended")] == ["t3"]
        with pytest.raises(NotFound):
            await tenants.show(tx, "t9")
        with pytest.raises(NotFound):
            await tenants.set_status(tx, "t9", "active", actor="op")
        with pytest.raises(Conflict, match="no status"):
            await tenants.set_status(tx, "t1", "asleep", actor="op")


async def test_a_key_is_shown_once_and_revoked_for_good(ledger: Ledger) -> None:
    async with ledger.transaction() as tx:
        with pytest.raises(NotFound):
            await keys.create(tx, "acme", actor="op")
        await tenants.put(tx, "acme", plan="free", actor="op")
        made = await keys.create(tx, "acme", actor="op", name="ci")
        other = await keys.create(tx, "acme", actor="op")
        stored = [tuple(row) for row in await tx._connection.fetch("select * from api_keys")]
        log = await audit.read(tx, tenant="acme")
    assert made.secret.startswith("qs_")
    assert made.row.prefix == made.secret[:9]
    assert made.secret not in str(stored) + str(log)

    async with ledger.shard(0) as shard:
        assert shard is not None
        waiting = await shard.pending_keys(10)
        assert [row.sha256 for row in waiting] == [made.row.sha256, other.row.sha256]
        revoked = await keys.revoke(shard, made.secret, actor="op")
        await shard.mark_keys_projected(waiting)
        assert [(row.sha256, row.revoked_s > 0) for row in await shard.pending_keys(10)] == [(made.row.sha256, True)]
        again = await keys.revoke(shard, made.row.sha256[:12], actor="op")
        assert (again.rev, again.revoked_s) == (revoked.rev, revoked.revoked_s)
        assert [row.revoked_s > 0 for row in await keys.of_tenant(shard, "acme")] == [False, True]
        with pytest.raises(NotFound):
            await keys.revoke(shard, "qs_nothing", actor="op")


async def test_a_key_made_elsewhere_belongs_to_one_tenant(ledger: Ledger) -> None:
    async with ledger.transaction() as tx:
        await tenants.put(tx, "acme", plan="free", actor="op")
        await tenants.put(tx, "other", plan="free", actor="op")
        made = await keys.adopt(tx, "acme", "demo-secret", actor="op")
        assert (await keys.adopt(tx, "acme", "demo-secret", actor="op")).row == made.row
        with pytest.raises(Conflict):
            await keys.adopt(tx, "other", "demo-secret", actor="op")


async def test_the_same_catalogue_twice_is_one_revision_and_a_new_one_touches_every_tenant(ledger: Ledger) -> None:
    async with ledger.transaction() as tx:
        assert await plans.current(tx) is None
        assert await plans.pending(tx) is None
        for name in ("a", "b"):
            await tenants.put(tx, name, plan="free", actor="op")
        first = await plans.apply(tx, "plans: 1", {"plans": ["free"]}, actor="op")
    await project(ledger)
    async with ledger.transaction() as tx:
        assert (await plans.apply(tx, "plans: 1", {}, actor="op")).revision == first.revision == 1
        await plans.mark_projected(tx, 1)
        assert await plans.pending(tx) is None
    assert await pending(ledger) == []
    async with ledger.transaction() as tx:
        second = await plans.apply(tx, "plans: 2", {"plans": ["free", "pro"]}, actor="op")
        assert await plans.pending(tx) == second
        assert (await plans.apply(tx, "plans: 1", {}, actor="op")).revision == 3
        assert [version.revision for version in await plans.history(tx)] == [3, 2, 1]
        assert [version.revision for version in await plans.history(tx, before=3, most=1)] == [2]
        assert (await plans.get(tx, 2)).summary == {"plans": ["free", "pro"]}
        with pytest.raises(NotFound):
            await plans.get(tx, 4)
        assert {row.catalogue for row in await tenants.page(tx)} == {3}
    assert await pending(ledger) == ["a", "b"]


async def test_a_tenant_put_while_a_catalogue_is_applied_is_projected_with_the_new_one(ledger: Ledger) -> None:
    applied, put = asyncio.Event(), asyncio.Event()

    async def apply() -> None:
        async with ledger.transaction() as tx:
            await plans.apply(tx, "plans: 1", {}, actor="op")
            applied.set()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(put.wait(), 0.2)

    async def introduce() -> None:
        await applied.wait()
        async with ledger.transaction() as tx:
            assert (await tenants.put(tx, "late", plan="free", actor="op")).catalogue == 1
        put.set()

    await asyncio.gather(apply(), introduce())


async def test_another_number_of_shards_than_the_installations_is_refused_with_both_numbers(
    ledger: Ledger, database: str
) -> None:
    first = await ledger.installation()
    assert first.shards == 1
    other = await Ledger.open(database, shards=16)
    with pytest.raises(LedgerRefused, match=r"has 1 shards.* says 16"):
        async with other.transaction():
            pass
    with pytest.raises(LedgerRefused, match=r"has 1 shards.* says 16"):
        async with other.shard(0):
            pass
    await other.close()


async def test_two_first_uses_at_once_record_one_number_of_shards(database: str) -> None:
    ledgers = [await Ledger.open(database, shards=shards) for shards in (4, 4, 4)]
    found = await asyncio.gather(*(ledger.installation() for ledger in ledgers))
    assert found[0] == found[1] == found[2]
    for ledger in ledgers:
        await ledger.close()
