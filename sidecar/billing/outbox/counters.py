"""What the forwarder counts; its families are in telemetry.py."""

from __future__ import annotations

from sidecar.telemetry import DURATION_US, Histogram, Reading

OUTCOMES = ("delivered", "repeated", "busy", "unknown", "refused", "parked", "unsent")
VERDICTS = ("present", "absent", "ambiguous", "adopted")
STATES = ("waiting", "in_doubt", "parked")


class BillingCounters:
    """What the forwarder of one process counts up or sets; read only at a scrape."""

    __slots__ = ("call_us", "deltas", "events", "lag_s", "late", "pace_permille", "rows", "settled", "unbillable")

    def __init__(self) -> None:
        self.deltas = 0
        self.late = 0
        self.unbillable = 0
        self.events = dict.fromkeys(OUTCOMES, 0)
        self.settled = dict.fromkeys(VERDICTS, 0)
        self.call_us = Histogram(DURATION_US)
        self.rows = dict.fromkeys(STATES, 0)
        self.lag_s = 0
        self.pace_permille = 1000

    def reading(self) -> Reading:
        """Everything counted so far, by family."""
        return {
            "sidecar_stripe_deltas_total": {
                ("timely",): [self.deltas - self.late - self.unbillable],
                ("late",): [self.late],
                ("unbillable",): [self.unbillable],
            },
            "sidecar_stripe_events_total": {(outcome,): [count] for outcome, count in self.events.items()},
            "sidecar_stripe_call_seconds": {(): list(self.call_us.counts)},
            "sidecar_stripe_settled_total": {(verdict,): [count] for verdict, count in self.settled.items()},
            "sidecar_stripe_outbox_rows": {(state,): [count] for state, count in self.rows.items()},
            "sidecar_stripe_lag_seconds": {(): [self.lag_s]},
            "sidecar_stripe_pace_ratio": {(): [self.pace_permille]},
        }
