"""Works off the events that were received: looks again at what each is about.

Guarantees: an event is dealt with at least once; any number of processes share the work. Events about one object that
            wait together are dealt with by one look, so repeated and reordered ones cost little and change nothing.
            What fails is tried again ever later, and after ``TRIES_MAX`` times lies among the dead letters, visible and
            replayable. While Stripe or Postgres is away nothing becomes a dead letter.
Gives up:   the order of events, on purpose: the present state of the object counts, not how it came about.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Protocol

from msgspec import Struct

from sidecar.billing.subscriptions.mirror import ACTOR, Mirror
from sidecar.billing.webhooks import webhooks
from sidecar.billing.webhooks.webhooks import WebhookCounters
from sidecar.errors import LedgerUnavailable, SidecarError
from sidecar.ledger import audit
from sidecar.ledger.connection import Ledger
from sidecar.ledger.transaction import Transaction
from sidecar.logs import Transition, fields

POLL_S = 0.5
OBJECTS_AT_ONCE = 16
EVENTS_PER_CLAIM = 500
CLAIM_S = 120
TRIES_MAX = 8
BACKOFF_S = 2
BACKOFF_MAX_S = 600
HOUSEKEEPING_S = 30
TELLS_PEOPLE = ("customer.subscription.trial_will_end", "invoice.payment_failed", "invoice.payment_action_required")
NO_TENANT = "of no tenant here"

log = logging.getLogger(__name__)


class ErrorReports(Protocol):
    """What becomes of meter events that Stripe refused after it had taken them."""

    async def __call__(self, event: str, kind: str, meter: str, /) -> None: ...


class Event(Struct, frozen=True):
    """A claimed event."""

    id: str
    kind: str
    object: str
    customer: str
    thin: bool
    made_s: int
    tries: int


class Inbox:
    """One worker of this process; ``wake`` makes it look at once."""

    def __init__(self, mirror: Mirror, error_reports: ErrorReports, counters: WebhookCounters | None = None) -> None:
        self.counters = counters or WebhookCounters()
        self._mirror = mirror
        self._ledger: Ledger = mirror.ledger
        self._error_reports = error_reports
        self._woken = asyncio.Event()
        self._standing = Transition(log, "what webhooks need")
        self._looks: dict[str, Callable[[str], Awaitable[bool]]] = {
            webhooks.CUSTOMER: mirror.customer,
            webhooks.SUBSCRIPTION: mirror.subscription,
            webhooks.INVOICE: mirror.invoice,
            webhooks.CHECKOUT: mirror.checkout,
        }

    def wake(self) -> None:
        """Tell the worker that an event was stored."""
        self._woken.set()

    async def run(self) -> None:
        """Work until cancelled."""
        housekeeping_ms = 0
        looking_trouble = house_trouble = ""
        clock = self._mirror.clock
        while True:
            self._woken.clear()
            # Each whatever becomes of the others: a grace ends while Stripe is away, too.
            _, grace_trouble = await self._done(self._mirror.end_graces)
            busy, work_trouble = await self._done(self.work)
            if clock.monotonic_ms() >= housekeeping_ms:
                housekeeping_ms = clock.monotonic_ms() + HOUSEKEEPING_S * 1000
                _, looking_trouble = await self._done(self._mirror.look_again)
                _, house_trouble = await self._done(self.keep_house)
            if trouble := grace_trouble or work_trouble or looking_trouble or house_trouble:
                self._standing.bad(cause=trouble)
            else:
                self._standing.good()
            if not busy:
                await self._rest()

    async def work(self) -> bool:
        """Take what is due and deal with it; whether there was anything."""
        async with self._ledger.transaction() as tx:
            await tx.rows("lock_event_claims")
            rows = await tx.rows("claim_events", OBJECTS_AT_ONCE, EVENTS_PER_CLAIM, CLAIM_S)
        groups: dict[tuple[str, str], list[Event]] = {}
        for event in (Event(*row) for row in rows):
            subject = webhooks.subject_of(event.kind)
            # Every error report tells of other events, so each is dealt with on its own.
            about = event.id if subject == webhooks.METER else event.object
            groups.setdefault((subject, about), []).append(event)
        await asyncio.gather(*(self._deal_with(subject, about, events) for (subject, about), events in groups.items()))
        return bool(groups)

    async def keep_house(self) -> None:
        """Forget events dealt with long ago; count what waits, tenants that pay twice, and changes not done."""
        async with self._ledger.transaction() as tx:
            await tx.rows("drop_old_events")
            row = await tx.row("webhook_backlog")
            self.counters.doubled = int(await tx.value("doubled_subscriptions"))
            self.counters.unfinished = int(await tx.value("unfinished_count"))
        if row is not None:
            self.counters.waiting, self.counters.oldest_s, self.counters.dead = (int(value) for value in row)

    async def _done(self, task: Callable[[], Awaitable[object]]) -> tuple[bool, str]:
        """Whether a task found anything to do, and why it could not be done; empty when it could."""
        try:
            return bool(await task()), ""
        except SidecarError as error:
            return False, str(error)
        except Exception as error:
            log.exception("webhooks could not be worked off")
            return False, type(error).__name__

    async def _rest(self) -> None:
        try:
            await asyncio.wait_for(self._woken.wait(), POLL_S)
        except TimeoutError:
            return

    async def _deal_with(self, subject: str, about: str, events: list[Event]) -> None:
        """One look for all events of one object; their fate is one, too."""
        try:
            known = await self._look(subject, about, events)
            async with self._ledger.transaction() as tx:
                if known:
                    await self._tell(tx, events)
                await tx.rows("finish_events", [event.id for event in events], "" if known else NO_TENANT)
            self.counters.handled += len(events)
        except SidecarError as error:
            await self._failed(events, str(error), transient=error.transient)
        except Exception as error:
            log.exception("webhook could not be understood", extra=fields(event_id=events[0].id, kind=events[0].kind))
            await self._failed(events, f"{type(error).__name__}: {error}", transient=False)

    async def _look(self, subject: str, about: str, events: list[Event]) -> bool:
        if subject == webhooks.METER:
            for event in events:
                await self._error_reports(event.id, event.kind, event.object)
            return True
        look = self._looks.get(subject)
        return await look(about) if look is not None else True

    async def _tell(self, tx: Transaction, events: list[Event]) -> None:
        """Note in the audit log what people should hear of; two events of one occurrence are noted once."""
        for event in {(event.kind, event.made_s): event for event in events if event.kind in TELLS_PEOPLE}.values():
            tenant = str(await tx.value("tenant_of_customer", event.customer) or "")
            if tenant and not await tx.value("event_told", event.object, event.kind, event.made_s):
                detail = {"object": event.object}
                await audit.write(tx, actor=ACTOR, action=f"stripe.{event.kind}", tenant=tenant, detail=detail)

    async def _failed(self, events: list[Event], problem: str, *, transient: bool) -> None:
        self.counters.failed += len(events)
        tries = max(event.tries for event in events)
        wait_s = min(BACKOFF_MAX_S, BACKOFF_S * 2 ** min(tries, 16)) * random.uniform(0.5, 1.0)
        if transient:
            wait_s = random.uniform(BACKOFF_S, 10 * BACKOFF_S)
        try:
            async with self._ledger.transaction() as tx:
                rows = await tx.rows(
                    "fail_events", [event.id for event in events], problem[:1000], transient, int(wait_s), TRIES_MAX
                )
        except LedgerUnavailable:
            # The claim runs out by itself, and the next one starts over.
            return
        for event, state in rows:
            if state == "dead":
                log.error("webhook is a dead letter", extra=fields(event_id=event, cause=problem))
