"""The audit log: who changed what, written in the transaction that changes it. Entries are never changed or removed."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from sidecar.ledger.transaction import Transaction


class AuditEntry(Struct, frozen=True):
    """One change. ``tenant`` is empty for changes of the installation; ``detail`` says what became of what."""

    id: int
    at_s: int
    actor: str
    action: str
    tenant: str
    detail: dict[str, Any]


async def write(tx: Transaction, *, actor: str, action: str, tenant: str = "", detail: dict[str, Any]) -> None:
    await tx.rows("write_audit", actor, action, tenant, msgspec.json.encode(detail).decode())


async def read(tx: Transaction, *, tenant: str = "", before_id: int = 0, most: int = 100) -> list[AuditEntry]:
    """The newest first; of one tenant, or before one entry, when given."""
    decode = msgspec.json.decode
    rows = await tx.rows("read_audit", tenant, before_id, most)
    return [AuditEntry(*[*fields, decode(detail)]) for *fields, detail in rows]
