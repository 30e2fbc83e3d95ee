"""A sidecar stands in every pod: what it loads at its start is memory and time to be ready."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

ELSEWHERE = (
    "aiohttp",
    "alembic",
    "asyncpg",
    "jinja2",
    "multiprocessing",
    "prometheus_client",
    "requests",
    "sidecar.billing",
    "sidecar.control",
    "sidecar.ledger",
    "sqlalchemy",
    "stripe",
    "yarl",
)


def imported(*modules: str) -> set[str]:
    """Every module of a process that has imported these."""
    script = f"import json, sys, {', '.join(modules)}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout))


@pytest.fixture(scope="module")
def worker() -> set[str]:
    return imported("sidecar.children", "sidecar.worker")


@pytest.fixture(scope="module")
def supervisor() -> set[str]:
    return imported("sidecar.cli.serve")


def among(loaded: set[str], name: str) -> set[str]:
    return {module for module in loaded if module == name or module.startswith(f"{name}.")}


@pytest.mark.parametrize("name", [*ELSEWHERE, "click", "sidecar.cli", "sidecar.supervisor", "yaml"])
def test_a_worker_does_not_load_what_others_need(worker: set[str], name: str) -> None:
    assert "sidecar.enforcement.core" in worker
    assert not among(worker, name)


@pytest.mark.parametrize("name", [*ELSEWHERE, "redis", "sidecar.enforcement", "sidecar.gateway", "uvloop", "yaml"])
def test_a_supervisor_does_not_load_what_its_children_need(supervisor: set[str], name: str) -> None:
    assert "sidecar.supervisor" in supervisor
    assert not among(supervisor, name)
