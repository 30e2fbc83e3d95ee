"""Events that Stripe sent, as operators see them."""

from __future__ import annotations

from msgspec import Struct

from sidecar.errors import NotFound
from sidecar.ledger import audit
from sidecar.ledger.transaction import Transaction


class StoredEvent(Struct, frozen=True):
    """One event. ``state`` is waiting, handled or dead; ``problem`` why the last try failed; times of 0 are none."""

    id: str
    kind: str
    object: str
    made_s: int
    received_s: int
    handled_s: int
    state: str
    tries: int
    problem: str


async def page(tx: Transaction, *, state: str = "", most: int = 50) -> list[StoredEvent]:
    """The newest events, in one state when given."""
    return [StoredEvent(*row) for row in await tx.rows("webhook_events", state, most)]


async def replay(tx: Transaction, event: str, *, actor: str) -> list[str]:
    """Put one event in line again, or all dead letters for an empty id; NotFound when there is no such event."""
    rows = await tx.rows("replay_event", event) if event else await tx.rows("replay_dead_events")
    replayed = [str(row[0]) for row in rows]
    if event and not replayed:
        raise NotFound(f"no event {event} was received; Stripe's dashboard can send it again")
    if replayed:
        await audit.write(tx, actor=actor, action="webhook.replay", detail={"events": replayed[:100]})
    return replayed
