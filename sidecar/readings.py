"""Readings of several processes, added up.

Guarantees: a counter never falls when a worker is replaced or misses a scrape: what a life of a process has counted
            is kept after its end.
Gives up:   what a killed process counted after the last scrape, in these metrics only (never in the ledger).
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import msgpack

from sidecar.telemetry import FAMILIES, Family, Reading


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


def _joined(family: Family, left: list[int], right: list[int]) -> list[int]:
    if family.merge == "sum":
        return [a + b for a, b in zip(left, right, strict=True)]
    return [(max if family.merge == "max" else min)(a, b) for a, b in zip(left, right, strict=True)]
