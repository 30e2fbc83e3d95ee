"""When a soak says that something grew."""

from __future__ import annotations

import pytest

from bench.soak import SAMPLES, judge

STEADY = {
    "worker.memory_kb": 60_000.0,
    "worker.descriptors": 40.0,
    "redis.memory_kb": 3_000.0,
    "redis.keys": 1_500.0,
    "redis.windows": 300.0,
    "worker.journal_kb": 1_028.0,
}


def samples(name: str = "", *, growth: float = 0.0) -> list[dict[str, float]]:
    """A run in which everything wavers, starts lower, and one quantity grows by so much from start to end."""
    found = []
    for number in range(SAMPLES):
        one = {key: value * (0.5 if number < SAMPLES // 10 else 1) + number % 3 for key, value in STEADY.items()}
        if name:
            one[name] += growth * number / SAMPLES
        found.append(one)
    return found


def grown(found: list[dict[str, float]]) -> set[str]:
    return {name for name, change in judge(found).items() if not change.flat}


def test_what_wavers_and_had_to_warm_up_is_flat() -> None:
    assert grown(samples()) == set()
    assert set(judge(samples())) == STEADY.keys() - {"redis.windows"}


@pytest.mark.parametrize(
    ("name", "growth"),
    [
        ("worker.memory_kb", 10_000),
        ("worker.descriptors", 12),
        ("redis.memory_kb", 6_000),
        ("redis.keys", 100),
        ("worker.journal_kb", 4_096),
    ],
)
def test_what_grows_is_named(name: str, growth: float) -> None:
    assert grown(samples(name, growth=growth)) == {name}


def test_windows_of_a_new_hour_explain_the_memory_that_they_take() -> None:
    found = samples("redis.memory_kb", growth=6_000)
    for number, one in enumerate(found):
        one["redis.windows"] += 6_000 * number / SAMPLES
    assert grown(found) == set()
