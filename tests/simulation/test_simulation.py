"""Runs of the protocol, from a request to Stripe, with faults from seeds; every invariant holds after each of them."""

from __future__ import annotations

import os

import pytest

from tests.simulation.run import simulate

# Seeds that once showed a fault of the program, without limits of minutes; what it was is in docs/simulation.md.
REGRESSIONS = (
    11, 28, 106, 145, 157, 158, 191, 337, 405, 473, 557, 591, 758, 1035, 1253, 1587, 1898, 1955, 2350, 9146,
    10365, 10911, 21745, 30362, 43243, 44322, 45254, 46418,
    48540, 61351, 1000074, 1003978, 1201705, 1306235, 1319196, 1301231, 1302271, 1309262,
    1400419, 1452489, 1459126, 1716089, 1808487, 2000063, 2000994, 2203473, 3114922, 4520321,
    5311680, 5600791, 177549068,
)  # fmt: skip
OF_MINUTES = (53, 4701257, 4702597, 5002470, 5110053)
BATCH = 25
REPLAY = ".venv/bin/python -m tests.simulation.run --verbose"
BATCHES = int(os.environ.get("SIMULATION_SEEDS", "500")) // BATCH
# The same seeds on a developer's machine, new ones in CI (tests/conftest.py); `make simulate` takes many more.
FIRST = int(os.environ.get("SIMULATION_FIRST", "0"))
pytestmark = [
    pytest.mark.usefixtures("quiet"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_a_seed_that_once_failed_passes(seed: int) -> None:
    outcome = simulate(seed, minutes=False)
    assert not outcome.violations, "\n".join(outcome.history)


@pytest.mark.parametrize("seed", OF_MINUTES)
def test_a_seed_that_once_failed_with_limits_of_minutes_passes(seed: int) -> None:
    outcome = simulate(seed, minutes=True)
    assert not outcome.violations, "\n".join(outcome.history)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_the_invariants_hold_whatever_fails(batch: int) -> None:
    for seed in range(FIRST + batch * BATCH, FIRST + (batch + 1) * BATCH):
        outcome = simulate(seed)
        assert not outcome.violations, f"{REPLAY} --seed {seed}\n" + "\n".join(outcome.history)


@pytest.mark.parametrize("minutes", [False, True])
def test_the_same_seed_is_the_same_run(*, minutes: bool) -> None:
    first, second = simulate(12, minutes=minutes), simulate(12, minutes=minutes)
    assert first.history == second.history
    assert first.steps == second.steps
