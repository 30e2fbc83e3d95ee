"""What the program counts about itself: metric families, and the plain objects whose integers are counted up.

Guarantees: counting is one integer addition; names, labels and meanings exist once, in FAMILIES; no label holds
            anything a client or tenant chose.
Gives up:   floats until the last moment: a reading holds integers (ms, us), and the exposition divides.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Literal

from msgspec import Struct

# family -> label values -> numbers. One number for counters and gauges; for histograms the count of each bucket
# (not cumulative, the last one unbounded) and then the sum of all observations.
Reading = dict[str, dict[tuple[str, ...], list[int]]]

LATENCY_US = (25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000)
DURATION_US = (500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000, 30_000_000)


class Family(Struct, frozen=True):
    """One metric: how readings of several processes merge, and what one exposed unit is in reading units."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()
    merge: Literal["sum", "max", "min"] = "sum"
    divisor: int = 1
    buckets: tuple[int, ...] = ()


_LISTED = (
    Family("sidecar_decisions_total", "counter", "Decisions, by reason and gateway dialect.", ("reason", "dialect")),
    Family(
        "sidecar_decision_seconds",
        "histogram",
        "Time from a complete request to its written answer.",
        divisor=1_000_000,
        buckets=LATENCY_US,
    ),
    Family("sidecar_requests_malformed_total", "counter", "Requests refused as malformed, oversized or too slow."),
    Family("sidecar_requests_refused_total", "counter", "Requests refused before a decision, by reason.", ("reason",)),
    Family("sidecar_decisions_failed_total", "counter", "Decisions that failed inside and were answered 500."),
    Family("sidecar_connections_refused_total", "counter", "Connections closed at accept because there were too many."),
    Family("sidecar_connections", "gauge", "Open gateway connections."),
    Family("sidecar_requests_waiting", "gauge", "Requests that wait for the store right now."),
    Family("sidecar_waits_total", "counter", "Requests that had to wait for the store, by outcome.", ("outcome",)),
    Family("sidecar_leases_held", "gauge", "Leases in hand."),
    Family("sidecar_lease_units", "gauge", "Units left in the leases in hand."),
    Family(
        "sidecar_lease_units_lost_total",
        "counter",
        "Units that Redis took back from silent or dead writers; every flusher tells the same number.",
        merge="max",
    ),
    Family("sidecar_syncs_total", "counter", "Syncs with Redis, by outcome.", ("outcome",)),
    Family("sidecar_sync_seconds", "histogram", "Duration of a sync.", divisor=1_000_000, buckets=DURATION_US),
    Family("sidecar_sync_age_seconds", "gauge", "Time since the last good sync, of the worst worker.", (), "max", 1000),
    Family("sidecar_store_calls_total", "counter", "Calls to Redis, by script or verb.", ("verb",)),
    Family("sidecar_store_errors_total", "counter", "Calls to Redis that failed or came too late.", ("verb",)),
    Family("sidecar_store_evicted_keys", "gauge", "Keys that Redis evicted since it started; must be 0.", (), "max"),
    Family("sidecar_breaker_open", "gauge", "Workers whose breaker keeps them from calling Redis."),
    Family("sidecar_breaker_opened_total", "counter", "Times a breaker opened."),
    Family("sidecar_generation_changes_total", "counter", "Times a worker learned that Redis had lost its state."),
    Family("sidecar_journal_lag_windows", "gauge", "Windows in journals that the ledger does not have yet."),
    Family("sidecar_journal_cells", "gauge", "Cells in use in journals."),
    Family("sidecar_journal_bytes", "gauge", "Size of the journals of live workers."),
    Family("sidecar_journal_writable", "gauge", "1 while every worker can write its journal.", (), "min"),
    Family("sidecar_journals_adopted_total", "counter", "Journals of dead workers that were taken over."),
    Family("sidecar_loop_failures_total", "counter", "Times a loop of a worker failed and began anew; must be 0."),
    Family("sidecar_degraded_limits", "gauge", "Limits that are decided by their outage policy right now."),
    Family("sidecar_snapshot_hits_total", "counter", "Requests whose tenant was in memory."),
    Family("sidecar_snapshot_misses_total", "counter", "Requests whose tenant had to be read from Redis."),
    Family("sidecar_snapshots_cached", "gauge", "Tenants in the workers' memory."),
    Family("sidecar_key_hits_total", "counter", "Requests whose API key was in memory."),
    Family("sidecar_key_misses_total", "counter", "Requests whose API key had to be read from Redis."),
    Family("sidecar_keys_cached", "gauge", "API keys, known and unknown, in the workers' memory."),
    Family("sidecar_strangers_refused_total", "counter", "Requests of names not in memory, in a flood of such."),
    Family("sidecar_catalogue_revision", "gauge", "Revision of the oldest catalogue in force.", (), "min"),
    Family("sidecar_catalogue_reload_ok", "gauge", "1 when the last catalogue offered was accepted.", (), "min"),
    Family("sidecar_flush_passes_total", "counter", "Passes of the flusher, by outcome.", ("outcome",)),
    Family("sidecar_flush_seconds", "histogram", "Duration of a flusher pass.", divisor=1_000_000, buckets=DURATION_US),
    Family("sidecar_flush_rows_total", "counter", "Rows that flusher passes wrote to the ledger."),
    Family("sidecar_flush_folded_total", "counter", "Rows of counters folded into the rows of their totals."),
    Family("sidecar_flush_lag_seconds", "gauge", "Time since the last pass that left nothing behind.", (), "max", 1000),
    Family("sidecar_flush_backlog_windows", "gauge", "Windows in Redis that the ledger does not have yet."),
    Family("sidecar_restores_total", "counter", "Shards restored from the ledger after Redis lost its state."),
    Family("sidecar_webhooks_total", "counter", "Webhook events, by what became of them.", ("outcome",)),
    Family("sidecar_webhooks_waiting", "gauge", "Webhook events stored and not dealt with yet.", (), "max"),
    Family("sidecar_webhook_lag_seconds", "gauge", "How long the oldest waiting webhook event has waited.", (), "max"),
    Family("sidecar_webhooks_dead", "gauge", "Webhook events that were given up; they can be replayed.", (), "max"),
    Family(
        "sidecar_stripe_subscriptions_doubled", "gauge", "Tenants that pay for more than one subscription.", (), "max"
    ),
    Family("sidecar_stripe_changes_unfinished", "gauge", "Changes of subscriptions begun and not done.", (), "max"),
    Family("sidecar_stripe_deltas_total", "counter", "Deltas decided for Stripe, by kind.", ("kind",)),
    Family("sidecar_stripe_events_total", "counter", "Usage events sent to Stripe, by their fate.", ("outcome",)),
    Family(
        "sidecar_stripe_call_seconds",
        "histogram",
        "Duration of a call that sends usage to Stripe.",
        divisor=1_000_000,
        buckets=DURATION_US,
    ),
    Family("sidecar_stripe_settled_total", "counter", "Deltas settled by summaries, by verdict.", ("outcome",)),
    Family("sidecar_stripe_outbox_rows", "gauge", "Deltas that Stripe does not have, by state.", ("kind",), "max"),
    Family("sidecar_stripe_lag_seconds", "gauge", "Age of the oldest delta on its way to Stripe.", (), "max"),
    Family("sidecar_stripe_pace_ratio", "gauge", "Share of the configured calls a second in use.", (), "min", 1000),
    Family("sidecar_stripe_drift_units", "gauge", "Base units by which ledger and Stripe differ.", ("kind",), "max"),
    Family("sidecar_stripe_drift_tenants", "gauge", "Tenants whose ledger and Stripe differ.", ("kind",), "max"),
    Family("sidecar_stripe_drift_unread", "gauge", "Lanes that Stripe would not tell about.", (), "max"),
    Family("sidecar_stripe_repairs_total", "counter", "Differences with Stripe that were repaired.", ("kind",)),
    Family(
        "sidecar_stripe_compared_age_seconds", "gauge", "Time since ledger and Stripe were compared.", (), "min", 1000
    ),
    Family("sidecar_processes", "gauge", "Processes that answered this scrape, by kind.", ("kind",)),
    Family("sidecar_restarts_total", "counter", "Processes restarted after they ended unasked, by kind.", ("kind",)),
)
FAMILIES = {family.name: family for family in _LISTED}


class Histogram:
    """Counts per bucket and a sum, as plain integers."""

    __slots__ = ("_bounds", "counts")

    def __init__(self, bounds: tuple[int, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 2)

    def observe(self, value: int) -> None:
        """Count one observation, in the family's reading unit."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.counts[-1] += value


class CoreCounters:
    """What the enforcement core of one worker counts up or sets; read only at a scrape.

    ``store_calls`` and ``store_errors`` are keyed by verb: names of scripts and commands, fixed in code.
    ``last_sync_ms`` is monotonic; 0 means that there was none yet, and ``started_ms`` counts instead.
    """

    __slots__ = (
        "breaker_open",
        "breaker_opened",
        "catalogue_reload_ok",
        "catalogue_revision",
        "degraded_limits",
        "generation_changes",
        "journal_bytes",
        "journal_cells",
        "journal_lag_windows",
        "journal_writable",
        "journals_adopted",
        "key_hits",
        "key_misses",
        "keys_cached",
        "last_sync_ms",
        "lease_units",
        "leases_held",
        "loop_failures",
        "requests_waiting",
        "snapshot_hits",
        "snapshot_misses",
        "snapshots_cached",
        "started_ms",
        "store_calls",
        "store_errors",
        "strangers_refused",
        "sync_us",
        "syncs_failed",
        "syncs_good",
        "syncs_superseded",
        "waits_answered",
        "waits_refused",
        "waits_timed_out",
    )

    def __init__(self, started_ms: int = 0) -> None:
        self.requests_waiting = 0
        self.waits_answered = 0  # the store answered in time and the request was allowed
        self.waits_refused = 0  # the store answered in time and there was no room
        self.waits_timed_out = 0
        self.leases_held = 0
        self.lease_units = 0
        self.syncs_good = 0
        self.syncs_failed = 0
        self.syncs_superseded = 0  # answered too late, or for an older sync: not used
        self.sync_us = Histogram(DURATION_US)
        self.started_ms = started_ms
        self.last_sync_ms = 0
        self.store_calls: dict[str, int] = {}
        self.store_errors: dict[str, int] = {}
        self.breaker_open = 0
        self.breaker_opened = 0
        self.generation_changes = 0
        self.journal_lag_windows = 0
        self.journal_cells = 0
        self.journal_bytes = 0
        self.journal_writable = 1
        self.journals_adopted = 0
        self.loop_failures = 0
        self.degraded_limits = 0
        self.snapshot_hits = 0
        self.snapshot_misses = 0
        self.snapshots_cached = 0
        self.key_hits = 0
        self.key_misses = 0
        self.keys_cached = 0
        self.strangers_refused = 0  # no turn to ask Redis, or no room
        self.catalogue_revision = 0
        self.catalogue_reload_ok = 1

    def reading(self, monotonic_ms: int) -> Reading:
        """Everything counted so far, by family."""
        return {
            "sidecar_requests_waiting": {(): [self.requests_waiting]},
            "sidecar_waits_total": {
                ("answered",): [self.waits_answered],
                ("refused",): [self.waits_refused],
                ("timed_out",): [self.waits_timed_out],
            },
            "sidecar_leases_held": {(): [self.leases_held]},
            "sidecar_lease_units": {(): [self.lease_units]},
            "sidecar_syncs_total": {
                ("good",): [self.syncs_good],
                ("failed",): [self.syncs_failed],
                ("superseded",): [self.syncs_superseded],
            },
            "sidecar_sync_seconds": {(): list(self.sync_us.counts)},
            "sidecar_sync_age_seconds": {(): [monotonic_ms - (self.last_sync_ms or self.started_ms)]},
            "sidecar_store_calls_total": {(verb,): [count] for verb, count in self.store_calls.items()},
            "sidecar_store_errors_total": {(verb,): [count] for verb, count in self.store_errors.items()},
            "sidecar_breaker_open": {(): [self.breaker_open]},
            "sidecar_breaker_opened_total": {(): [self.breaker_opened]},
            "sidecar_generation_changes_total": {(): [self.generation_changes]},
            "sidecar_journal_lag_windows": {(): [self.journal_lag_windows]},
            "sidecar_journal_cells": {(): [self.journal_cells]},
            "sidecar_journal_bytes": {(): [self.journal_bytes]},
            "sidecar_journal_writable": {(): [self.journal_writable]},
            "sidecar_journals_adopted_total": {(): [self.journals_adopted]},
            "sidecar_loop_failures_total": {(): [self.loop_failures]},
            "sidecar_degraded_limits": {(): [self.degraded_limits]},
            "sidecar_snapshot_hits_total": {(): [self.snapshot_hits]},
            "sidecar_snapshot_misses_total": {(): [self.snapshot_misses]},
            "sidecar_snapshots_cached": {(): [self.snapshots_cached]},
            "sidecar_key_hits_total": {(): [self.key_hits]},
            "sidecar_key_misses_total": {(): [self.key_misses]},
            "sidecar_keys_cached": {(): [self.keys_cached]},
            "sidecar_strangers_refused_total": {(): [self.strangers_refused]},
            "sidecar_catalogue_revision": {(): [self.catalogue_revision]},
            "sidecar_catalogue_reload_ok": {(): [self.catalogue_reload_ok]},
        }


class FlusherCounters:
    """What the flusher counts up or sets. ``clean_ms`` is the monotonic time of the last pass that left nothing."""

    __slots__ = (
        "backlog_windows",
        "clean_ms",
        "evicted_keys",
        "flush_us",
        "folded",
        "lease_units_lost",
        "passes_failed",
        "passes_good",
        "restores",
        "rows",
    )

    def __init__(self, started_ms: int = 0) -> None:
        self.passes_good = 0
        self.passes_failed = 0
        self.flush_us = Histogram(DURATION_US)
        self.rows = 0
        self.folded = 0
        self.clean_ms = started_ms
        self.backlog_windows = 0
        self.restores = 0
        self.lease_units_lost: int | None = None  # until the ledger was asked
        self.evicted_keys = 0

    def reading(self, monotonic_ms: int) -> Reading:
        """Everything counted so far, by family."""
        return {
            "sidecar_flush_passes_total": {("good",): [self.passes_good], ("failed",): [self.passes_failed]},
            "sidecar_flush_seconds": {(): list(self.flush_us.counts)},
            "sidecar_flush_rows_total": {(): [self.rows]},
            "sidecar_flush_folded_total": {(): [self.folded]},
            "sidecar_flush_lag_seconds": {(): [monotonic_ms - self.clean_ms]},
            "sidecar_flush_backlog_windows": {(): [self.backlog_windows]},
            "sidecar_restores_total": {(): [self.restores]},
            "sidecar_lease_units_lost_total": {(): [lost]} if (lost := self.lease_units_lost) is not None else {},
            "sidecar_store_evicted_keys": {(): [self.evicted_keys]},
        }
