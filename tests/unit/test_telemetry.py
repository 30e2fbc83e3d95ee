from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from sidecar import exposition, readings
from sidecar.telemetry import FAMILIES, LATENCY_US, CoreCounters, FlusherCounters, Histogram, Reading

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


def samples(reading: Reading) -> dict[tuple[str, tuple[str, ...]], float]:
    text = exposition.render(reading).decode()
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_family_is_documented() -> None:
    rows = re.findall(r"^\| `(sidecar_\w+)` \| (\w+) \| (.*?) \| (.*) \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert rows == [
        (family.name, family.kind, ", ".join(f"`{label}`" for label in family.labels), family.meaning)
        for family in FAMILIES.values()
    ]


def test_no_family_has_a_label_that_clients_or_tenants_choose() -> None:
    bounded = {"reason", "dialect", "outcome", "verb", "kind"}
    assert {label for family in FAMILIES.values() for label in family.labels} <= bounded


def test_what_the_counters_tell_is_known_and_has_the_right_labels() -> None:
    core = CoreCounters()
    core.store_calls["sync"] = 1
    core.store_errors["sync"] = 1
    for reading in (core.reading(5), FlusherCounters().reading(5)):
        for name, values in reading.items():
            assert all(len(labels) == len(FAMILIES[name].labels) for labels in values)


def test_counters_add_up_and_ages_take_the_worst() -> None:
    first, second = CoreCounters(started_ms=1_000), CoreCounters(started_ms=1_000)
    first.snapshot_hits, second.snapshot_hits = 3, 4
    first.last_sync_ms, second.last_sync_ms = 9_000, 2_500
    second.journal_writable = 0
    found = samples(readings.merge([first.reading(10_000), second.reading(10_000)]))
    assert found["sidecar_snapshot_hits_total", ()] == 7
    assert found["sidecar_sync_age_seconds", ()] == 7.5
    assert found["sidecar_journal_writable", ()] == 0


def test_a_histogram_is_cumulative_in_seconds_at_the_exposition() -> None:
    histogram = Histogram(LATENCY_US)
    for value_us in (25, 26, 400, 10**9):
        histogram.observe(value_us)
    found = samples({"sidecar_decision_seconds": {(): histogram.counts}})
    assert found["sidecar_decision_seconds_bucket", ("2.5e-05",)] == 1
    assert found["sidecar_decision_seconds_bucket", ("0.0005",)] == 3
    assert found["sidecar_decision_seconds_bucket", ("+Inf",)] == 4
    assert found["sidecar_decision_seconds_sum", ()] == 1000.000451


def test_a_counter_never_falls_when_a_worker_is_replaced() -> None:
    totals = readings.Totals()
    before, after = CoreCounters(), CoreCounters()
    before.snapshot_hits, before.leases_held, after.snapshot_hits = 10, 5, 1
    totals.seen("authz-0", 100, before.reading(0))
    totals.seen("authz-0", 200, after.reading(0))
    found = totals.total({"authz-0"}, {})
    assert found["sidecar_snapshot_hits_total"] == {(): [11]}
    assert found["sidecar_leases_held"] == {(): [0]}


def test_a_worker_that_does_not_answer_keeps_its_counters_and_loses_its_gauges() -> None:
    totals = readings.Totals()
    counters = CoreCounters()
    counters.snapshot_hits = 10
    totals.seen("authz-0", 100, counters.reading(0))
    found = totals.total(set(), {})
    assert found["sidecar_snapshot_hits_total"] == {(): [10]}
    assert "sidecar_leases_held" not in found


def test_a_reading_survives_the_way_to_the_supervisor() -> None:
    reading = CoreCounters().reading(5)
    assert readings.decode(readings.encode(reading)) == reading


def test_a_family_of_another_version_is_left_out() -> None:
    assert readings.merge([{"sidecar_of_tomorrow": {(): [1]}}]) == {}
