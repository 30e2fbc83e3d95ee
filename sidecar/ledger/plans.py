"""Versions of the catalogue, the newest in force.

Guarantees: the same document twice is one revision; a new revision makes every tenant pending in the same transaction,
            so no tenant stays on limits of an older one.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from sidecar.errors import NotFound
from sidecar.ledger import audit
from sidecar.ledger.transaction import Transaction

NO_VERSION = 0, 0


class PlanVersion(Struct, frozen=True):
    """One revision of the catalogue: its text as applied, and a parsed summary for people and pages."""

    revision: int
    document: str
    summary: dict[str, Any]
    actor: str
    created_s: int
    projected: bool


async def apply(tx: Transaction, document: str, summary: dict[str, Any], *, actor: str) -> PlanVersion:
    """Put a document in force; the one in force already keeps its revision and changes nothing."""
    # A tenant written while the revisions are raised would be projected with the catalogue before and marked as done.
    await tx.rows("lock_tenants")
    before = await current(tx)
    if before is not None and before.document == document:
        return before
    await tx.rows("write_plan_version", document, msgspec.json.encode(summary).decode(), actor)
    await tx.rows("touch_all_tenants")
    after = await current(tx)
    if after is None:
        raise NotFound("the catalogue just written is not there")
    detail = {"before": before.revision if before is not None else 0, "after": after.revision}
    await audit.write(tx, actor=actor, action="catalogue.apply", detail=detail)
    return after


async def current(tx: Transaction) -> PlanVersion | None:
    """The version in force; None before the first."""
    versions = await history(tx, most=1)
    return versions[0] if versions else None


async def current_revision(tx: Transaction) -> int:
    """The revision in force, without its document; 0 before the first."""
    return int(await tx.value("current_revision") or 0)


async def in_force(tx: Transaction) -> tuple[int, int]:
    """The revision in force, and when it was written (us); zeros before the first.

    Of a ledger that was restored from a backup the number alone may come again for another document.
    """
    for revision, written_us in await tx.rows("catalogue_in_force"):
        return int(revision), int(written_us)
    return NO_VERSION


async def get(tx: Transaction, revision: int) -> PlanVersion:
    """One version; NotFound when there is none."""
    versions = [_version(row) for row in await tx.rows("plan_versions", revision, 0, 1)] if revision > 0 else []
    if not versions:
        raise NotFound(f"there is no catalogue revision {revision}")
    return versions[0]


async def history(tx: Transaction, *, before: int = 0, most: int = 50) -> list[PlanVersion]:
    """The newest first, before a revision when given."""
    return [_version(row) for row in await tx.rows("plan_versions", 0, before, most)]


async def pending(tx: Transaction) -> PlanVersion | None:
    """The version in force while it is not projected; None when Redis has it."""
    version = await current(tx)
    return version if version is not None and not version.projected else None


async def mark_projected(tx: Transaction, revision: int) -> None:
    """Record that Redis has this revision, which makes every older one history."""
    await tx.rows("mark_plan_version_projected", revision)


def _version(row: Any) -> PlanVersion:
    revision, document, summary, actor, created_s, projected = row
    return PlanVersion(revision, document, msgspec.json.decode(summary), actor, created_s, projected)
