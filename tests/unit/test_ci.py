"""What is different in CI: seeds nobody has tried, and nothing skipped for what the machine lacks."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import pytest_configure
from tests.servers.lacking import lacking

SCRIPT = Path(__file__).parents[2] / ".ci" / "run"


def chosen(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str | None:
    """The first seed that a run of pytest with this environment takes; None is the usual one."""
    with monkeypatch.context() as patched:
        patched.setattr(os, "environ", environment)
        pytest_configure()
        return os.environ.get("SIMULATION_FIRST")


def test_each_run_in_ci_takes_seeds_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = {chosen(monkeypatch, CI="true") for _ in range(5)}
    assert len(seeds) == 5
    assert all(seed is not None and 0 <= int(seed) < 10**9 for seed in seeds)


def test_elsewhere_the_seeds_are_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch) is None
    assert chosen(monkeypatch, CI="") is None


@pytest.mark.parametrize("environment", [{}, {"CI": "true"}])
def test_chosen_seeds_are_kept(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    assert chosen(monkeypatch, SIMULATION_FIRST="7", **environment) == "7"


@pytest.mark.parametrize("outside", [{}, {"CI": "true"}], ids=["by hand", "by a service that says so"])
def test_the_script_of_ci_says_to_everything_it_starts_that_this_is_ci(tmp_path: Path, outside: dict[str, str]) -> None:
    """The real script, with every package installed, and a word of the environment in place of the whole suite."""
    for name, does in {"dpkg-query": "printf installed", "timeout": 'printf "%s: %s" "$CI" "$*"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", **outside}
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "true: --kill-after=60 75m make test"


def test_what_a_machine_lacks_skips_a_test_and_fails_it_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no TLS"):
        lacking("no TLS")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no TLS"):
        lacking("no TLS")
