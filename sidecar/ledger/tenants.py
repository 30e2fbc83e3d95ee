"""Tenants: who they are, on which plan, in which state.

Guarantees: every change that alters a tenant's snapshot raises its ``rev`` (from one sequence, so it only grows), is
            written to the audit log in the same transaction, and stays pending until it is marked as projected.
            What changes nothing raises nothing. A tenant never becomes its own ancestor.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from sidecar.errors import Conflict, NotFound
from sidecar.ledger import audit
from sidecar.ledger.transaction import Transaction

STATUSES = ("active", "trialing", "past_due", "unpaid", "cancelled", "paused", "suspended")
ID_BYTES_MAX = 128


class TenantRow(Struct, frozen=True):
    """A tenant with its overrides, in the names that catalogue.resolve takes.

    ``catalogue`` is the catalogue revision that was in force in the same look at the ledger: what is resolved with an
    older one must not be marked as projected. ``origin`` is "put", or "introduced" when counts came before anybody put
    the tenant.
    """

    tenant: str
    plan: str
    status: str
    status_until_s: int
    parent: str
    anchor_s: int
    interval_months: int
    shadow: bool
    origin: str
    rev: int
    projected_rev: int
    shard: int
    created_s: int
    updated_s: int
    catalogue: int
    overrides: dict[str, Any]


class PlanChange(Struct, frozen=True):
    """One entry of a tenant's plan history."""

    tenant: str
    at_s: int
    from_plan: str
    to_plan: str
    actor: str
    reason: str


class _Change(Struct, frozen=True, kw_only=True):
    """What to set of a tenant: None leaves it; parent "" and a time of 0 clear it."""

    plan: str | None = None
    status: str | None = None
    status_until_s: int | None = None
    parent: str | None = None
    anchor_s: int | None = None
    shadow: bool | None = None


async def put(  # noqa: PLR0913  # one keyword for each thing that can be set
    tx: Transaction,
    tenant: str,
    *,
    plan: str,
    actor: str,
    parent: str | None = None,
    anchor_s: int | None = None,
    shadow: bool | None = None,
    status: str | None = None,
    status_until_s: int | None = None,
) -> TenantRow:
    """Create a tenant, or set what is given of one that exists; None leaves it; parent "" and a time of 0 clear it.

    The same put twice changes nothing the second time. A tenant that was introduced by its own counts is adopted.
    """
    _check_id(tenant)
    if await tx.value("insert_tenant", tenant, plan, zlib.crc32(tenant.encode()) % tx.shards) is not None:
        await audit.write(tx, actor=actor, action="tenant.create", tenant=tenant, detail={"plan": plan})
    change = _Change(
        plan=plan, status=status, status_until_s=status_until_s, parent=parent, anchor_s=anchor_s, shadow=shadow
    )
    return await _change(tx, tenant, change, actor=actor, action="tenant.put", adopt=True)


async def show(tx: Transaction, tenant: str) -> TenantRow:
    """Return a tenant; NotFound when there is none."""
    found = await by_ids(tx, [tenant])
    if not found:
        raise NotFound(f"there is no tenant {tenant!r}")
    return found[0]


async def by_ids(tx: Transaction, ids: Sequence[str]) -> list[TenantRow]:
    """Those of the tenants that exist, by id."""
    decode = msgspec.json.decode
    return [TenantRow(*[*row, decode(overrides)]) for *row, overrides in await tx.rows("tenants_by_id", ids)]


async def page(
    tx: Transaction, *, after: str = "", most: int = 100, plan: str = "", status: str = ""
) -> list[TenantRow]:
    """Tenants by id, after a given one; of one plan or status when given."""
    ids = [row[0] for row in await tx.rows("tenants_after", after, most, plan, status)]
    return await by_ids(tx, ids)


async def set_status(
    tx: Transaction, tenant: str, status: str, *, actor: str, until_s: int = 0, reason: str = "", rev: int | None = None
) -> TenantRow:
    """Set the status, until a time when given; Conflict when ``rev`` is given and the tenant is at another one."""
    change = _Change(status=status, status_until_s=until_s)
    return await _change(tx, tenant, change, actor=actor, action="tenant.status", reason=reason, rev=rev)


async def change_plan(
    tx: Transaction,
    tenant: str,
    plan: str,
    *,
    actor: str,
    reason: str = "",
    anchor_s: int | None = None,
    rev: int | None = None,
) -> TenantRow:
    """Move a tenant to a plan and write its history; a new anchor starts its billing periods anew."""
    change = _Change(plan=plan, anchor_s=anchor_s)
    return await _change(tx, tenant, change, actor=actor, action="tenant.plan", reason=reason, rev=rev)


async def override(
    tx: Transaction, tenant: str, name: str, value: Any, *, actor: str, rev: int | None = None
) -> TenantRow:
    """Set one override, a JSON value under a name that catalogue.resolve knows; None takes it back."""
    before = await _locked(tx, tenant, rev)
    if value is None:
        changed = await tx.value("drop_override", tenant, name)
    else:
        changed = await tx.value("set_override", tenant, name, msgspec.json.encode(value).decode(), actor)
    if changed is not None:
        await tx.rows("touch_tenant", tenant)
        detail = {"name": name, "before": before.overrides.get(name), "after": value}
        await audit.write(tx, actor=actor, action="tenant.override", tenant=tenant, detail=detail)
    return await show(tx, tenant)


async def plan_changes(tx: Transaction, tenant: str, most: int = 100) -> list[PlanChange]:
    """A tenant's plan history, the newest first."""
    return [PlanChange(*row) for row in await tx.rows("plan_changes", tenant, most)]


async def _locked(tx: Transaction, tenant: str, rev: int | None) -> TenantRow:
    # Locked first and read after: the row that is read is then the one that stays.
    await tx.rows("lock_tenant", tenant)
    row = await show(tx, tenant)
    if rev is not None and row.rev != rev:
        raise Conflict(f"tenant {tenant!r} is at revision {row.rev}, not {rev}; read it again and decide anew")
    return row


async def _change(
    tx: Transaction,
    tenant: str,
    change: _Change,
    *,
    actor: str,
    action: str,
    reason: str = "",
    rev: int | None = None,
    adopt: bool = False,
) -> TenantRow:
    if change.status is not None and change.status not in STATUSES:
        raise Conflict(f"there is no status {change.status!r}; there are {', '.join(STATUSES)}")
    before = await _locked(tx, tenant, rev)
    if change.parent:
        await _check_parent(tx, tenant, change.parent)
    changed = await tx.value(
        "update_tenant",
        tenant,
        change.plan,
        change.status,
        change.status_until_s,
        change.parent,
        change.anchor_s,
        change.shadow,
        adopt,
    )
    after = await show(tx, tenant)
    if after.plan != before.plan:
        await tx.rows("write_plan_change", tenant, before.plan, after.plan, actor, reason)
    if changed is not None:
        detail = _difference(before, after) | ({"reason": reason} if reason else {})
        await audit.write(tx, actor=actor, action=action, tenant=tenant, detail=detail)
    return after


def _check_id(tenant: str) -> None:
    """Refuse what no gateway could name: an id travels in a header, so it prints and has no blanks around it."""
    try:
        size = len(tenant.encode())
    except UnicodeEncodeError as error:
        raise Conflict(f"{tenant!r} is no tenant id: it is no UTF-8") from error
    if not 1 <= size <= ID_BYTES_MAX:
        raise Conflict(f"a tenant id has 1 to {ID_BYTES_MAX} bytes, this one has {size}")
    if not tenant.isprintable() or tenant != tenant.strip():
        raise Conflict(f"{tenant!r} is no tenant id: no control characters, line breaks or blanks around it")


async def _check_parent(tx: Transaction, tenant: str, parent: str) -> None:
    await tx.rows("lock_families")
    family = [row[0] for row in await tx.rows("ancestors", parent)]
    if not family:
        raise NotFound(f"there is no tenant {parent!r} to be a parent")
    if tenant in family:
        raise Conflict(f"{parent!r} cannot be the parent of {tenant!r}: it descends from it")
    below, above = (await tx.rows("customers_in_line", tenant, parent))[0]
    if below and above:
        told = f"{below!r} and {above!r} are both billed, and would both pay for what {below!r} uses"
        raise Conflict(f"{parent!r} cannot be the parent of {tenant!r}: {told}")


def _difference(before: TenantRow, after: TenantRow) -> dict[str, Any]:
    fields = ("plan", "status", "status_until_s", "parent", "anchor_s", "shadow", "origin")
    pairs = {name: (getattr(before, name), getattr(after, name)) for name in fields}
    return {name: {"before": old, "after": new} for name, (old, new) in pairs.items() if old != new}
