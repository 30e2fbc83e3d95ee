"""What the gateway stage counts, as plain integers that a collector reads at a scrape.

Guarantees: counting is an addition to a list or dictionary that already has the key; all labels are fixed in code.
"""

from __future__ import annotations

from sidecar.enforcement.decision import REASONS
from sidecar.telemetry import LATENCY_US, Reading

DIALECTS = ("envoy", "nginx", "forward")
LATENCY_NS = tuple(bound * 1_000 for bound in LATENCY_US)


class GatewayCounters:
    """Counters of one listener.

    ``decisions``: dialect -> reason -> decisions answered. ``latency``: decisions per bucket of telemetry.LATENCY_US
    (not cumulative, the last one unbounded), from the complete request to its answer; ``latency_ns``: their sum.
    ``malformed``: requests refused as malformed, oversized or with a bad framing; ``timeouts``: connections closed
    because their request came too slowly or they did not read; ``secrets_refused``: requests without the shared
    secret; ``unknown_paths``: requests to no dialect; ``failures``: decisions that raised and were answered 500;
    ``connections``: open now; ``connections_refused``: closed at accept because there were too many.
    """

    __slots__ = (
        "connections",
        "connections_refused",
        "decisions",
        "failures",
        "latency",
        "latency_ns",
        "malformed",
        "secrets_refused",
        "timeouts",
        "unknown_paths",
    )

    def __init__(self) -> None:
        self.decisions = {dialect: dict.fromkeys(REASONS, 0) for dialect in DIALECTS}
        self.latency = [0] * (len(LATENCY_NS) + 1)
        self.latency_ns = 0
        self.malformed = 0
        self.timeouts = 0
        self.secrets_refused = 0
        self.unknown_paths = 0
        self.failures = 0
        self.connections = 0
        self.connections_refused = 0

    def reading(self) -> Reading:
        """Everything counted so far, by family of telemetry.FAMILIES."""
        return {
            "sidecar_decisions_total": {
                (reason, dialect): [count]
                for dialect, reasons in self.decisions.items()
                for reason, count in reasons.items()
            },
            "sidecar_decision_seconds": {(): [*self.latency, self.latency_ns // 1_000]},
            "sidecar_requests_malformed_total": {(): [self.malformed + self.timeouts]},
            "sidecar_requests_refused_total": {("secret",): [self.secrets_refused], ("path",): [self.unknown_paths]},
            "sidecar_decisions_failed_total": {(): [self.failures]},
            "sidecar_connections_refused_total": {(): [self.connections_refused]},
            "sidecar_connections": {(): [self.connections]},
        }
