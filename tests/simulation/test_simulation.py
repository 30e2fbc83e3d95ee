"""Runs of the protocol, from a request to Stripe, with faults from seeds; every invariant holds after each of them."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from tests.simulation.run import simulate

# Seeds that once showed a fault of the program, without limits of minutes; what it was is in docs/simulation.md.
REGRESSIONS = (
    11, 28, 106, 145, 157, 158, 191, 337, 405, 473, 557, 591, 758, 1035, 1253, 1587, 1898, 1955, 2350, 9146,
    10365, 10911, 21745, 30362, 43243, 44322, 45254, 46418,
    48540, 61351, 1000074, 1003978, 1201705, 1306235, 1319196, 1301231, 1302271, 1309262,
    1400419, 1452489, 1459126, 1716089, 1808487, 2000063, 2000994, 2203473, 3114922, 4520321,
    5311680, 5600791, 5615841, 8202945, 8306310, 9514698, 9903075, 10102692, 10110387, 10304532, 10316445, 10710179,
    177549068,
)  # fmt: skip
OF_MINUTES = (53, 4701257, 4702597, 5002470, 5110053, 5615388, 8013471, 9706868, 9801372, 10217024, 10505367)
BATCH = 25
REPLAY = ".venv/bin/python -m tests.simulation.run --verbose"
BATCHES = int(os.environ.get("SIMULATION_SEEDS", "500")) // BATCH
# The same seeds on a developer's machine, new ones in CI (tests/conftest.py); `make simulate` takes many more.
FIRST = int(os.environ.get("SIMULATION_FIRST", "0"))
# Of so many seeds on, every kind of fault has to have happened: the rarest does some 17 times in these.
ENOUGH = 500
KINDS = {
    "request lost", "reply lost", "message late", "message overtaken", "message repeated", "reply repeated",
    "snapshot published again, late", "changes unheard",
    "worker killed", "worker killed, torn journal", "worker killed at an effect", "clean stop",
    "worker killed between counting and answering", "worker killed at a file",
    "pause", "pause beyond reclaim", "pause on a lease", "worker cut off", "worker cut off beyond reclaim",
    "disk lost", "power lost", "journal found late",
    "flusher killed", "flusher killed at an effect", "flusher paused", "second flusher",
    "redis wiped", "redis wiped after an adoption", "redis restarted", "redis outage",
    "failover", "failover with split brain", "failover, flushers on both sides",
    "postgres outage", "postgres restored", "postgres restored, stripe ahead", "connection to postgres cut",
    "wall clock jumps", "wall clock steps", "redis clock jumps",
    "minutes pass", "hours pass", "days pass", "period ends", "late usage",
    "plan changed", "catalogue changed",
    "forwarder killed", "forwarder killed at an effect", "forwarder paused", "second forwarder",
    "forwarder asleep through a restore",
    "stripe outage", "stripe outage beyond a day", "summaries late",
    "stripe: answer lost", "stripe: busy", "stripe: call late", "stripe: call lost", "stripe: call repeated",
    "stripe: error after", "stripe: error before", "stripe: reported",
}  # fmt: skip
pytestmark = [
    pytest.mark.usefixtures("quiet"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_a_seed_that_once_failed_passes(seed: int) -> None:
    outcome = simulate(seed, minutes=False, ends=False)
    assert not outcome.violations, "\n".join(outcome.history)


@pytest.mark.parametrize("seed", OF_MINUTES)
def test_a_seed_that_once_failed_with_limits_of_minutes_passes(seed: int) -> None:
    outcome = simulate(seed, minutes=True, ends=False)
    assert not outcome.violations, "\n".join(outcome.history)


@pytest.fixture(scope="module")
def struck() -> dict[int, Counter[str]]:
    """Faults of the batches so far, by kind."""
    return {}


@pytest.mark.parametrize("batch", range(BATCHES))
def test_the_invariants_hold_whatever_fails(batch: int, struck: dict[int, Counter[str]]) -> None:
    faults = struck[batch] = Counter()
    for seed in range(FIRST + batch * BATCH, FIRST + (batch + 1) * BATCH):
        outcome = simulate(seed)
        faults.update(outcome.faults)
        assert not outcome.violations, f"{REPLAY} --seed {seed}\n" + "\n".join(outcome.history)


def test_every_kind_of_fault_happened(struck: dict[int, Counter[str]]) -> None:
    if len(struck) * BATCH < ENOUGH:
        pytest.skip(f"only in a run of at least {ENOUGH} seeds")
    happened = sum(struck.values(), Counter[str]())
    assert happened.keys() >= KINDS, f"never: {sorted(KINDS - happened.keys())}"


@pytest.mark.parametrize("minutes", [False, True])
def test_the_same_seed_is_the_same_run(*, minutes: bool) -> None:
    first, second = simulate(12, minutes=minutes), simulate(12, minutes=minutes)
    assert first.history == second.history
    assert first.steps == second.steps
