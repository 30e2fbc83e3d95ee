"""`make simulate` itself: what it prints, how it exits, and that a seed is the same run in another process."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation import run
from tests.simulation.mutations import mutated

ROOT = Path(__file__).parents[2]
KEYS = ["seeds", "steps", "faults", "violations"]
HASHES = "4711" if os.environ.get("PYTHONHASHSEED") != "4711" else "4712"
# Of those that nearly every seed shows.
SHORTCUT = "spent moved by leases as well as windows"
pytestmark = [
    pytest.mark.usefixtures("quiet"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


def started(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it in a process of its own, with hashes of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation.run", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": HASHES},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_seeds_without_a_violation_are_one_line_and_exit_0() -> None:
    ended = started("--seeds", "2")
    line = json.loads(ended.stdout)
    assert (ended.returncode, list(line)) == (0, KEYS)
    assert (line["seeds"], line["violations"]) == (2, 0)
    assert line["steps"] > 0
    assert line["faults"]


def test_seeds_with_a_violation_are_named_and_exit_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # In this process, since another one would not have the shortcut.
    monkeypatch.setattr(multiprocessing, "Pool", lambda _jobs, **_options: run._Alone())
    monkeypatch.setattr(sys, "argv", ["run", "--seeds", "2"])
    with mutated(SHORTCUT):
        status = run.main()
    told = capsys.readouterr()
    line = json.loads(told.out)
    assert (status, list(line)) == (1, KEYS)
    assert 1 <= line["violations"] <= 2
    assert told.err.count("seed ") == line["violations"]


@pytest.mark.parametrize("minutes", [False, True])
def test_a_seed_is_the_same_run_in_another_process(*, minutes: bool) -> None:
    here = run.simulate(12, minutes=minutes or None)
    there = started("--seed", "12", "--verbose", *["--minutes"] * minutes)
    assert there.returncode == 0
    *history, line = there.stdout.splitlines()
    assert history == "\n".join(here.history).splitlines()
    assert json.loads(line)["steps"] == here.steps
    assert json.loads(line)["faults"] == dict(sorted(here.faults.items()))
