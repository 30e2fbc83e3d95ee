"""Changes of subscriptions that were begun, kept until they are done.

Guarantees: what a change is about to do is in the ledger before Stripe is told the first part of it, so whoever comes
            after a crash can finish it; a tenant has one at a time. Its number is part of every idempotency key.
Gives up:   remembering which part was done: that is seen at Stripe, and nowhere else for certain.
"""

from __future__ import annotations

import uuid
from typing import Literal

import msgspec
from msgspec import Struct

from sidecar.ledger.transaction import Transaction

Proration = Literal["create_prorations", "always_invoice", "none"]
TrialEnd = Literal["pause", "cancel", "create_invoice"]
Doing = Literal["subscribe", "change", "change_later", "cancel", "cancel_later", "go_on"]
RETRY_S = 15
RETRY_MAX_S = 600


class Wish(Struct, frozen=True, kw_only=True):
    """What somebody subscribes to. ``trial_days`` None is the plan's, an empty currency the catalogue's."""

    plan: str
    annual: bool = False
    currency: str = ""
    trial_days: int | None = None
    trial_end: TrialEnd = "pause"
    days_until_due: int | None = None


class Intention(Struct, frozen=True, kw_only=True):
    """One change. ``subscription`` is empty while there is none, ``wish`` None of what leaves the plan as it is.

    With ``metrics``, only their prices change: of what is there, or of what comes with a change that waits already.
    """

    id: str
    do: Doing
    actor: str
    subscription: str = ""
    wish: Wish | None = None
    metrics: tuple[str, ...] = ()
    proration: Proration = "create_prorations"
    force: bool = False


class Unfinished(Struct, frozen=True, kw_only=True):
    """An intention that is still to be finished. ``problem`` is why the last try failed, empty before the first."""

    intention: Intention
    begun_s: int
    age_s: int
    tries: int
    problem: str


def new(do: Doing, actor: str, **more: object) -> Intention:
    """An intention with a number of its own."""
    return msgspec.convert({"id": uuid.uuid4().hex, "do": do, "actor": actor, **more}, Intention)


async def write(tx: Transaction, tenant: str, intention: Intention) -> None:
    """Keep what is about to be done. To be called inside ``customers.one_change``."""
    if not await tx.value("write_intention", tenant, msgspec.json.encode(intention).decode()):
        raise RuntimeError("an intention is written inside one_change, after the one before it is finished")


async def finish(tx: Transaction, tenant: str, intention: Intention) -> None:
    """Forget what is done."""
    await tx.rows("finish_intention", tenant, intention.id)


async def failed(tx: Transaction, tenant: str, found: Unfinished, problem: str) -> None:
    """Have it tried again, ever later."""
    wait_s = min(RETRY_MAX_S, RETRY_S * 2 ** min(found.tries, 8))
    await tx.rows("intention_failed", tenant, found.intention.id, problem[:1000], wait_s)


async def of_tenant(tx: Transaction, tenant: str) -> Unfinished | None:
    """What is still to be finished of a tenant's last change."""
    row = await tx.row("intention_of", tenant)
    if row is None:
        return None
    work, begun_s, age_s, tries, problem = row
    intention = msgspec.json.decode(work, type=Intention)
    return Unfinished(intention=intention, begun_s=begun_s, age_s=age_s, tries=tries, problem=problem)
