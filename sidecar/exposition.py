"""A reading in the text format of Prometheus. Whoever is never scraped need not import it."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from sidecar.telemetry import FAMILIES, Family, Reading

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(reading: Reading) -> bytes:
    """Render the text format of Prometheus."""
    registry = CollectorRegistry()
    registry.register(_Collector(reading))
    return generate_latest(registry)


class _Collector(Collector):
    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def collect(self) -> Iterator[Metric]:
        for name, samples in sorted(self._reading.items()):
            yield _metric(FAMILIES[name], samples)


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
