"""Limits, snapshots and accounts for tests of enforcement, told apart by what a test says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from sidecar.catalogue.model import RouteRule
from sidecar.catalogue.snapshot import LimitRule, Snapshot
from sidecar.enforcement.account import Account
from sidecar.enforcement.exchange import ShardExchange
from sidecar.enforcement.limit_state import LimitState
from sidecar.enforcement.sent import Sent
from sidecar.enforcement.terms import Terms
from sidecar.store.messages import LeaseReply, SyncMessage, SyncReply, TenantReply
from sidecar.usage.journal import Journal

HARD = LimitRule("calls", "api", "day", "tenant", (), 100, 100, "deny", 0, "closed", 0, shadow=False)
SOFT = LimitRule("calls", "api", "day", "tenant", (), 100, None, "bill", 0, "open", 0, shadow=False)
PLAN = Snapshot("acme", 1, "standard", "active", 0, "", 0, 1, {}, (), shadow=False, limits=(HARD,))
ONE = RouteRule(name="one", costs={"api": 1})
NOON_S = 1_772_366_400  # 2026-03-01 12:00:00 UTC
NOWHERE = Path("/dev/null/journal")  # cannot be made, so that cells are in memory


def limit(like: LimitRule = HARD, **changes: Any) -> LimitRule:
    return msgspec.structs.replace(like, **changes)


def plan(*limits: LimitRule, **changes: Any) -> Snapshot:
    return msgspec.structs.replace(PLAN, limits=limits or PLAN.limits, **changes)


def exchange(terms: Terms | None = None) -> ShardExchange:
    made = ShardExchange(0, "w1", Journal(NOWHERE, "w1"), terms or Terms())
    made.hour = NOON_S // 3600
    return made


def account(snapshot: Snapshot = PLAN, parent: Account | None = None) -> Account:
    return Account(snapshot, exchange(), parent)


def known(shard: ShardExchange, snapshot: Snapshot = PLAN) -> Account:
    """The account of a tenant that the shard can find by name."""
    made = Account(snapshot, shard)
    shard.accounts = {**shard.accounts, made.tenant: made}
    return made


def limit_of(owner: Account, limit_id: str) -> LimitState:
    """A limit that the account has."""
    found = owner.limits.get(limit_id)
    assert found is not None
    return found


def reply(
    message: SyncMessage, *leases: LeaseReply, generation: str = "g1", revision: int = 1, **changes: Any
) -> SyncReply:
    """An answer that renews; ``leases`` are those of the one tenant reported."""
    parts = [TenantReply(revision, list(leases)) for _ in message.parts]
    made = SyncReply(generation, True, 0, 1, message.generation == generation, parts, NOON_S // 3600)
    return msgspec.structs.replace(made, **changes)


def composed(shard: ShardExchange, now_ms: int) -> tuple[SyncMessage, list[Sent]]:
    """The next message and what it says, in one go."""
    return shard.message(sent := list(shard.reports(now_ms)), now_ms), sent


def applied(
    shard: ShardExchange, message: SyncMessage, sent: list[Sent], answer: SyncReply, sent_ms: int, now_ms: int
) -> None:
    """Have a reply taken over, in one go."""
    for _ in shard.applied(message, sent, answer, sent_ms, now_ms):
        pass


def lease(units: int, *, spent: int = 0, held: int | None = None, over_ms: int = 0, called: bool = False) -> LeaseReply:
    return LeaseReply(units, spent, units if held is None else held, over_ms, called)
