"""Readings of several processes, added up and rendered for Prometheus.

Guarantees: a counter never falls when a worker is replaced or misses a scrape: what a life of a process has counted
            is kept after its end.
Gives up:   what a killed process counted after the last scrape, in these metrics only (never in the ledger).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec import msgpack
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from sidecar.telemetry import FAMILIES, Family, Reading

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def encode(reading: Reading) -> bytes:
    """Encode a reading for the way from a child to the supervisor."""
    return msgpack.encode(reading)


def decode(data: bytes) -> Reading:
    """Read what ``encode`` wrote."""
    return msgpack.decode(data, type=Reading)


def merge(readings: Iterable[Reading]) -> Reading:
    """Join readings by each family's own rule; an unknown family (of an older process) is left out."""
    total: Reading = {}
    for reading in readings:
        for name, samples in reading.items():
            family = FAMILIES.get(name)
            if family is None:
                continue
            merged = total.setdefault(name, {})
            for labels, numbers in samples.items():
                merged[labels] = _joined(family, merged[labels], numbers) if labels in merged else list(numbers)
    return total


def growing(reading: Reading) -> Reading:
    """Only the families that must never fall: counters and histograms."""
    return {name: samples for name, samples in reading.items() if name in FAMILIES and FAMILIES[name].kind != "gauge"}


def render(reading: Reading) -> bytes:
    """Render the text format of Prometheus."""
    registry = CollectorRegistry()
    registry.register(_Collector(reading))
    return generate_latest(registry)


class Totals:
    """What all lives of all processes have counted, from scrape to scrape."""

    def __init__(self) -> None:
        self._ended: Reading = {}
        self._last: dict[str, tuple[int, Reading]] = {}

    def seen(self, process: str, life: int, reading: Reading) -> None:
        """Take the newest reading of a process; ``life`` is its pid, which tells one life from the next."""
        previous = self._last.get(process)
        if previous is not None and previous[0] != life:
            self._ended = merge([self._ended, growing(previous[1])])
        self._last[process] = (life, reading)

    def total(self, answered: set[str], own: Reading) -> Reading:
        """Join everything; of processes that did not answer just now only what never falls."""
        lives = [reading if process in answered else growing(reading) for process, (_, reading) in self._last.items()]
        return merge([self._ended, own, *lives])


class _Collector(Collector):
    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def collect(self) -> Iterator[Metric]:
        for name, samples in sorted(self._reading.items()):
            yield _metric(FAMILIES[name], samples)


def _joined(family: Family, left: list[int], right: list[int]) -> list[int]:
    if family.merge == "sum":
        return [a + b for a, b in zip(left, right, strict=True)]
    return [(max if family.merge == "max" else min)(a, b) for a, b in zip(left, right, strict=True)]


def _metric(family: Family, samples: dict[tuple[str, ...], list[int]]) -> Metric:
    metric: Metric
    if family.kind == "histogram":
        metric = HistogramMetricFamily(family.name, family.meaning, labels=family.labels)
        for labels, numbers in samples.items():
            metric.add_metric(labels, buckets=_buckets(family, numbers), sum_value=numbers[-1] / family.divisor)
        return metric
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(family.name, family.meaning, labels=family.labels)
    for labels, numbers in samples.items():
        metric.add_metric(labels, numbers[0] if family.divisor == 1 else numbers[0] / family.divisor)
    return metric


def _buckets(family: Family, numbers: list[int]) -> list[tuple[str, float]]:
    bounds = [*(str(bound / family.divisor) for bound in family.buckets), "+Inf"]
    running = 0
    buckets = []
    for bound, count in zip(bounds, numbers[:-1], strict=True):
        running += count
        buckets.append((bound, float(running)))
    return buckets
