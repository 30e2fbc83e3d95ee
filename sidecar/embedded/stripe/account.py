"""Everything one account holds: objects by kind, what is due when, and events that tell of changes.

Guarantees: due work runs in the order of its time and sees that time as now, however far the clock jumped.
Gives up:   several accounts; Connect headers are refused.
"""

from __future__ import annotations

import heapq
import itertools
import secrets
import string
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from sidecar.embedded.stripe.clock import StandInClock
from sidecar.embedded.stripe.errors import missing_object
from sidecar.embedded.stripe.metering import Metering

API_VERSION = "2026-10-28.endive"
ALPHABET = string.ascii_letters + string.digits
DUE_STEPS_MAX = 1_000_000

Object = dict[str, Any]
Due = Callable[["Account", str], None]

PREFIXES = {
    "customer": "cus_",
    "product": "prod_",
    "price": "price_",
    "billing.meter": "mtr_test_",
    "billing.meter_event_adjustment": "mtr_adj_",
    "subscription": "sub_",
    "subscription_item": "si_",
    "subscription_schedule": "sub_sched_",
    "invoice": "in_",
    "invoiceitem": "ii_",
    "line_item": "il_",
    "checkout.session": "cs_test_",
    "billing_portal.session": "bps_",
    "billing_portal.configuration": "bpc_",
    "payment_method": "pm_",
    "payment_intent": "pi_",
    "webhook_endpoint": "we_",
    "event": "evt_",
    "v2.core.event": "evt_test_",
    "v2.billing.meter_event_session": "mes_test_",
}


def _nothing(_: Account, __: str) -> None:
    """Stand in for a part that is not there."""


class Options(Struct, kw_only=True, forbid_unknown_fields=True):
    """How the account behaves; set by POST /_options."""

    # Calls a second of the meter event endpoints; of all endpoints together (0: no bound, 25: a sandbox).
    meter_calls_per_s: int = 1_000
    calls_per_s: int = 0
    # How long a meter event call lasts, during which a second one for its customer and meter is refused.
    meter_call_ms: int = 2
    # How long usage takes to show in event summaries.
    visibility_s: float = 0
    # What the documentation says of most accounts; decimals are switched on by Stripe on request.
    whole_values_only: bool = False
    # What a payment attempt ends with: paid, failed or action_required; per customer in ``payments``.
    payment: str = "paid"
    # Whether a customer without a payment method is refused, as the real API does.
    payment_method_needed: bool = True
    payments: dict[str, str] = {}
    # What becomes of a subscription when all attempts failed: unpaid, canceled or past_due.
    exhausted: str = "unpaid"
    payment_attempts_max: int = 4
    payment_retry_s: int = 86_400
    finalize_after_s: int = 3_600


class Account:
    """The account's whole state, but for what is being delivered and answered right now."""

    def __init__(self, clock: StandInClock) -> None:
        self.clock = clock
        self.options = Options()
        self.tables: dict[str, dict[str, Object]] = {kind: {} for kind in PREFIXES}
        self.metering = Metering()
        self.request: dict[str, str | None] | None = None
        self.notify: Callable[[Object], None] = lambda _: None
        self._due: list[tuple[int, int, str, str]] = []
        self._order = itertools.count()
        self._runners: dict[str, Due] = {}
        # Set by the subscriptions: ends one at once, or all of a customer.
        self.end_subscription: Due = _nothing
        self.plan_subscription: Due = _nothing
        # Set by the stream: reports an event that was answered as taken.
        self.accept_and_report: Callable[[Account, Any, str], None] = lambda _, __, ___: None
        # Events of the stream that are not checked yet, with the error that a fault asks for.
        self.streamed: list[tuple[Any, str]] = []
        self.on_customer_deleted: list[Due] = []
        self._virtual_s: int | None = None
        self.changes = 0

    @property
    def now(self) -> int:
        """Unix seconds; while due work runs, the second it was due."""
        return self.clock.now_s() if self._virtual_s is None else self._virtual_s

    def table(self, kind: str) -> dict[str, Object]:
        return self.tables[kind]

    def new_id(self, kind: str) -> str:
        return PREFIXES[kind] + "".join(secrets.choice(ALPHABET) for _ in range(24))

    def add(self, kind: str, values: Object) -> Object:
        """Make an object with what every object has."""
        identity = values.pop("id", None) or self.new_id(kind)
        made = {"id": identity, "object": kind, "created": self.now, "livemode": False, **values}
        self.tables[kind][identity] = made
        self.changes += 1
        return made

    def get(self, kind: str, identity: str, param: str = "id", *, in_path: bool = False) -> Object:
        found = self.tables[kind].get(identity)
        if found is None or (found.get("deleted") and not in_path):
            raise missing_object(kind, identity, param, in_path=in_path)
        return found

    def find(self, identity: str) -> Object | None:
        """Find an object of any kind by its id, for expansion."""
        for kind, prefix in PREFIXES.items():
            if identity.startswith(prefix):
                found = self.tables[kind].get(identity)
                if found is not None:
                    return found
        return None

    def emit(self, event_type: str, subject: Object, previous: Object | None = None) -> Object:
        """Tell that something happened; ``subject`` is rendered as it is now."""
        data: Object = {"object": subject}
        if previous is not None:
            data["previous_attributes"] = previous
        event = self.add(
            "event",
            {
                "type": event_type,
                "api_version": API_VERSION,
                "data": data,
                "pending_webhooks": 0,
                "request": self.request or {"id": None, "idempotency_key": None},
            },
        )
        self.notify(event)
        return event

    def runner(self, kind: str, run: Due) -> None:
        """Say what is done for a kind of due work; it must bear being called too early or twice."""
        self._runners[kind] = run

    def schedule(self, when_s: int, kind: str, identity: str) -> None:
        heapq.heappush(self._due, (when_s, next(self._order), kind, identity))

    def catch_up(self) -> None:
        """Do everything that is due by now, each at its own time."""
        if not self._due or self._virtual_s is not None:
            return
        limit = self.clock.now_s()
        request, self.request = self.request, None
        try:
            for _ in range(DUE_STEPS_MAX):
                if not self._due or self._due[0][0] > limit:
                    break
                when_s, _, kind, identity = heapq.heappop(self._due)
                self._virtual_s = when_s
                self._runners[kind](self, identity)
                self.changes += 1
        finally:
            self._virtual_s, self.request = None, request

    @property
    def pending(self) -> list[tuple[int, str, str]]:
        """What is scheduled, for the kept state."""
        return [(when_s, kind, identity) for when_s, _, kind, identity in sorted(self._due)]
