"""What comparisons with Stripe count; its families are in telemetry.py."""

from __future__ import annotations

from sidecar.billing.reconciliation import drift
from sidecar.telemetry import Reading

REPAIRS = ("decided_again", "sent_again", "settled", "cancelled")


class DriftCounters:
    """What comparisons with Stripe found last, whichever process made them, and what this one repaired.

    ``compared_ms`` is the monotonic time of the end of the last one; None before the first.
    """

    __slots__ = ("compared_ms", "repaired", "tenants", "units", "unread")

    def __init__(self) -> None:
        self.units = dict.fromkeys(drift.KINDS, 0)
        self.tenants = dict.fromkeys(drift.KINDS, 0)
        self.unread = 0
        self.repaired = dict.fromkeys(REPAIRS, 0)
        self.compared_ms: int | None = None

    def reading(self, monotonic_ms: int) -> Reading:
        """Everything counted so far, by family."""
        age: dict[tuple[str, ...], list[int]] = (
            {} if self.compared_ms is None else {(): [monotonic_ms - self.compared_ms]}
        )
        return {
            "sidecar_stripe_drift_units": {(kind,): [units] for kind, units in self.units.items()},
            "sidecar_stripe_drift_tenants": {(kind,): [tenants] for kind, tenants in self.tenants.items()},
            "sidecar_stripe_drift_unread": {(): [self.unread]},
            "sidecar_stripe_repairs_total": {(kind,): [count] for kind, count in self.repaired.items()},
            "sidecar_stripe_compared_age_seconds": age,
        }
