"""Shortcuts put into the program on purpose: the simulation notices each of them."""

from __future__ import annotations

import json

import pytest

from tests.simulation.mutations import ALL, CAUGHT, noticed

# For each shortcut a seed that showed it, found by `make mutations` within 2,000. What a seed does moves on with the
# program; so a few more are tried before a shortcut counts as unnoticed.
SEEDS: dict[str, list[int]] = json.loads(CAUGHT.read_text())
TRIED_BESIDES = 40
# What the design says was tried and broke an invariant, in its words or nearly.
IN_THE_DESIGN = {
    "spent moved by leases as well as windows",
    "restoring an absolute total",
    "refusing syncs during the restore",
    "granting during the restore",
    "granting after lease_ttl instead of reclaim_after",
    "no generation in messages",
    "no check of the acknowledged sequence, replication id ignored",
    "using late replies",
    "using superseded replies",
    "dropping a departed writer's entry",
    "deleting an adopted journal when Redis has it",
    "continuing an old writer id",
    "freeing an old life's leases before its windows are reported",
    "stale messages counting as signs of life",
    "new limits starting at zero",
    "accepting syncs of an older revision",
    "no guaranteed need",
    "a waiter joined to a call sent before it",
}
FOR_THE_OUTBOX = {
    "a new identifier on retry",
    "a duplicate taken as failure",
    "deltas decided outside the transaction",
    "timestamps past the period",
}
# Chains of accidents, found as faults of the program among 20,000 seeds.
FOUND_BY_CHANCE = {
    "a report is overruled by an answer that is recorded after it",
    "what a sum was explained with is sent again on a report",
    "a worker retires where what it told was lost",
    "revisions of before a restore are given again",
    "a publish of an earlier pass is accepted",
    "who stops waits for the end of an outage",
    "what ended before the restored hours is lent",
}
pytestmark = [
    pytest.mark.usefixtures("quiet"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_a_shortcut_is_noticed(name: str) -> None:
    seeds = [*SEEDS[name], *range(TRIED_BESIDES)]
    assert any(noticed(name, seed) for seed in seeds), f"make mutations ONLY={name!r} looks for a seed that shows it"


def test_every_shortcut_that_matters_was_noticed_within_two_thousand_seeds() -> None:
    assert IN_THE_DESIGN | FOR_THE_OUTBOX <= SEEDS.keys() <= ALL.keys()
    assert all(seed < 2_000 for name, seeds in SEEDS.items() if name not in FOUND_BY_CHANCE for seed in seeds)
