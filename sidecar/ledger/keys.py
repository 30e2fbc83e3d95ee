"""API keys: shown once, kept as SHA-256, projected to Redis by the shard of their hash.

Guarantees: the secret is never stored and cannot be shown again; a revoked key stays revoked, and its row stays.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from collections.abc import Sequence

from msgspec import Struct

from sidecar.errors import Conflict, NotFound
from sidecar.ledger import audit
from sidecar.ledger.transaction import Transaction

PREFIX = "qs_"
SECRET_BYTES = 32
SHOWN_CHARACTERS = len(PREFIX) + 6
_HASH_START = re.compile("[0-9a-f]{8,64}")


class KeyRow(Struct, frozen=True):
    """An API key as the ledger knows it. ``prefix`` is what people may see of it; ``revoked_s`` 0 while it is valid."""

    sha256: str
    tenant: str
    name: str
    prefix: str
    created_s: int
    revoked_s: int
    rev: int
    projected_rev: int


class NewKey(Struct, frozen=True):
    """A key just made, with the secret that nobody will see again."""

    secret: str
    row: KeyRow


def sha256_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


async def create(tx: Transaction, tenant: str, *, actor: str, name: str = "") -> NewKey:
    """Make a key for a tenant; NotFound when there is no such tenant."""
    return await adopt(tx, tenant, PREFIX + secrets.token_urlsafe(SECRET_BYTES), actor=actor, name=name)


async def adopt(tx: Transaction, tenant: str, secret: str, *, actor: str, name: str = "") -> NewKey:
    """Keep a key made elsewhere; the same secret for the same tenant again is fine, for another one a Conflict."""
    sha256 = sha256_of(secret)
    known = await _by_hashes(tx, [sha256])
    if known:
        if known[0].tenant != tenant or known[0].revoked_s:
            raise Conflict("this API key is revoked or belongs to another tenant; make a new one")
        return NewKey(secret, known[0])
    shard = zlib.crc32(sha256.encode()) % tx.shards
    if await tx.value("write_key", sha256, tenant, name, secret[:SHOWN_CHARACTERS], shard) is None:
        raise NotFound(f"there is no tenant {tenant!r}; put it first")
    detail = {"sha256": sha256, "name": name}
    await audit.write(tx, actor=actor, action="key.create", tenant=tenant, detail=detail)
    return NewKey(secret, (await _by_hashes(tx, [sha256]))[0])


async def revoke(tx: Transaction, key: str, *, actor: str) -> KeyRow:
    """Revoke a key named by its secret, or by its SHA-256 or the start of it (8 digits or more) that fits only one.

    Revoking it again changes nothing.
    """
    sha256 = await _find(tx, key)
    revoked = await tx.value("revoke_key", sha256)
    row = (await _by_hashes(tx, [sha256]))[0]
    if revoked is not None:
        await audit.write(tx, actor=actor, action="key.revoke", tenant=row.tenant, detail={"sha256": sha256})
    return row


async def of_tenant(tx: Transaction, tenant: str) -> list[KeyRow]:
    """Every key of a tenant, revoked ones too."""
    return await _by_hashes(tx, [row[0] for row in await tx.rows("key_hashes_of_tenant", tenant)])


async def pending(tx: Transaction, shard: int, most: int) -> list[KeyRow]:
    """Keys of a shard (by hash) with a rev that is not projected."""
    return await _by_hashes(tx, [row[0] for row in await tx.rows("keys_pending", shard, most)])


async def mark_projected(tx: Transaction, rows: Sequence[KeyRow]) -> None:
    """Record that Redis has these rows as they are here. Repeating or reordering it changes nothing."""
    ordered = sorted(rows, key=lambda row: row.sha256)
    await tx.rows("mark_keys_projected", [row.sha256 for row in ordered], [row.rev for row in ordered])


async def _by_hashes(tx: Transaction, hashes: Sequence[str]) -> list[KeyRow]:
    return [KeyRow(*row) for row in await tx.rows("keys_by_hash", hashes)]


async def _find(tx: Transaction, key: str) -> str:
    start = key.lower() if _HASH_START.fullmatch(key.lower()) else sha256_of(key)
    found = [str(row[0]) for row in await tx.rows("key_hashes_like", start)]
    if not found:
        raise NotFound("there is no such API key")
    if len(found) > 1:
        raise Conflict(f"more than one API key starts with {start}; name more of it")
    return found[0]
