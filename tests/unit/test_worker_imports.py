"""A sidecar stands in every pod: it must not load what only the backoffice needs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = "import json, sys, sidecar.cli.children, sidecar.worker; print(json.dumps(sorted(sys.modules)))"


@pytest.fixture(scope="module")
def imported() -> set[str]:
    """Every module of a process that has what a worker imports."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "name",
    [
        "stripe",
        "requests",
        "asyncpg",
        "sqlalchemy",
        "alembic",
        "jinja2",
        "sidecar.ledger",
        "sidecar.billing",
        "sidecar.control",
    ],
)
def test_a_worker_does_not_load_what_only_the_backoffice_needs(imported: set[str], name: str) -> None:
    assert "sidecar.enforcement.core" in imported
    assert not {module for module in imported if module == name or module.startswith(f"{name}.")}
