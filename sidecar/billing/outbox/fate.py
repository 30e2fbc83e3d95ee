"""What became of a call: pure, from Stripe's answer to the row's next state.

Guarantees: a row is delivered only when Stripe said so, and is sent under another identifier only when it is certain
            that nothing arrived. What nobody knows stays unknown.
Source:     a repeated identifier is answered 400 "An event already exists with identifier ...", without a code in v1,
            with `duplicate_meter_event` in v2.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from sidecar.billing.outbox.row import Row
from sidecar.billing.stripe_api import IDEMPOTENCY
from sidecar.errors import SidecarError, StripeBusy, StripeRefused, StripeUnavailable

LOCKED_OUT = (401, 403)
SERVER_ERROR = 500
RETRY_MAX_S = 23 * 3_600  # Stripe remembers an identifier for 24 h; the rest is for calls on their way

Outcome = Literal["delivered", "repeated", "busy", "unknown", "refused", "parked", "unsent"]

# What is wrong with the row itself; everything else can be mended at Stripe (a meter, a customer, a key).
_HOPELESS_CODES = (
    "meter_event_invalid_value",
    "meter_event_value_not_found",
    "meter_event_value_too_many_digits",
    "timestamp_too_far_in_past",
    "timestamp_in_future",
    "parameter_unknown",
    "parameter_missing",
    "parameter_invalid_empty",
)
_HOPELESS_PARAMS = ("payload[value]", "timestamp", "identifier", "value")
_PAUSES_MS: dict[str, tuple[int, int]] = {  # after the first failure, and at most
    "busy": (250, 30_000),
    "unsent": (250, 30_000),
    "unknown": (1_000, 300_000),
    "refused": (60_000, 3_600_000),
}


class Fate(Struct, frozen=True):
    """What became of a row. ``no_effect``: this call certainly had none.

    ``kept``: Stripe keeps its error under the idempotency key. ``slow``: everybody is asked to slow down.
    ``locked_out``: our key is not accepted, so that no other call would be either.
    """

    row: Row
    outcome: Outcome
    state: Literal["delivered", "waiting", "in_doubt", "parked"]
    reason: str = ""
    no_effect: bool = False
    kept: bool = False
    slow: bool = False
    locked_out: bool = False

    @property
    def surprising(self) -> bool:
        """Whether Stripe has an event of this identifier that is not ours: then the ledger is older than Stripe.

        No call of this ledger can have brought it, or it has other contents.
        """
        return self.outcome == "repeated" and self.state != "delivered"


def delivered(row: Row) -> Fate:
    return Fate(row, "delivered", "delivered")


def unsent(row: Row, reason: str) -> Fate:
    """The call was not made after all."""
    return Fate(row, "unsent", "waiting", reason, no_effect=True)


def failed(row: Row, error: SidecarError) -> Fate:
    """What an error of the call means."""
    reason = str(error)
    if isinstance(error, StripeBusy):
        # Not without effect for certain: who repeats calls on the way may have brought a copy of it before this one.
        return Fate(row, "busy", "waiting", reason, slow=not error.reason.startswith("resource"))
    if isinstance(error, StripeUnavailable):
        return Fate(row, "unknown", "waiting", reason, kept=error.status >= SERVER_ERROR)
    if not isinstance(error, StripeRefused):
        return Fate(row, "unknown", "waiting", reason)
    return _refused(row, error, reason)


def _refused(row: Row, error: StripeRefused, reason: str) -> Fate:
    if exists(error, row.identifier):
        # Without a call that can have brought it, who knows what the event was that Stripe has.
        return Fate(row, "repeated", "delivered" if row.first_sent_s else "waiting")
    if error.code == IDEMPOTENCY:
        return Fate(row, "repeated", "waiting", reason)
    if error.status in LOCKED_OUT:
        return Fate(row, "refused", "waiting", reason, no_effect=True, locked_out=True)
    if not hopeless(error.code, error.param):
        # The key keeps this answer too; with another one the mended meter or customer is seen.
        return Fate(row, "refused", "waiting", reason, no_effect=True, kept=True)
    if row.first_sent_s:
        return Fate(row, "refused", "in_doubt", reason)  # an earlier call may have arrived
    return Fate(row, "parked", "parked", reason, no_effect=True)


def exists(error: StripeRefused, identifier: str) -> bool:
    """Whether a refusal says that Stripe has the event of our identifier."""
    text = str(error)
    if error.code == "duplicate_meter_event":
        return True
    return "already exists" in text and (identifier in text or error.param == "identifier")


def hopeless(code: str, param: str) -> bool:
    """Whether sending the very same event again can never help."""
    return code in _HOPELESS_CODES or param in _HOPELESS_PARAMS


def pause_ms(outcome: Outcome, failures: int, jitter: float) -> int:
    """How long a lane waits after so many failures in a row; ``jitter`` (0 to 1) keeps lanes from trying together."""
    if outcome not in _PAUSES_MS:
        return 0
    first_ms, most_ms = _PAUSES_MS[outcome]
    full_ms = min(most_ms, first_ms * 2 ** min(failures, 20))
    return int(full_ms * (0.5 + jitter / 2))
