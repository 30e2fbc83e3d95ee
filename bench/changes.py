"""How long a change takes from the billing API to the answers of every worker.

A tenant of a running installation (two workers, real Redis and Postgres) is suspended and taken back in turn. A change
counts as in force with the last answer that was still the old one, seen over new connections, so by both workers.

    python bench/changes.py [--changes 40]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.servers.sidecar_dev import SidecarDev

CATALOGUE = Path(__file__).parent.parent / "tests" / "e2e" / "main_job.yaml"
TENANT = "changing"
CHANGES = 40
IN_A_ROW = 12  # with two workers behind one port all of these come from one of them in 1 of 2,048 cases
STATUS = {"suspended": 402, "active": 200}


def measure(changes: int = CHANGES) -> dict[str, float]:
    """Milliseconds from the call of the API until no worker answers as before: median and 99th percentile."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        path.chmod(0o755)  # an embedded Postgres may run as another user
        with SidecarDev(path / "dev", CATALOGUE, workers=2) as dev:
            _change(dev, "active")
            dev.cli("flush")
            while _answer(dev) != STATUS["active"]:
                time.sleep(0.05)
            took = sorted(_took_s(dev, ("suspended", "active")[turn % 2]) for turn in range(changes))
    return {
        "change.median_ms": round(took[len(took) // 2] * 1000, 1),
        "change.p99_ms": round(took[min(len(took) - 1, len(took) * 99 // 100)] * 1000, 1),
    }


def _took_s(dev: SidecarDev, status: str) -> float:
    began = last_old = time.monotonic()
    _change(dev, status)
    row = 0
    while row < IN_A_ROW:
        row = row + 1 if _answer(dev) == STATUS[status] else 0
        if not row:
            last_old = time.monotonic()
    return last_old - began


def _change(dev: SidecarDev, status: str) -> None:
    request = urllib.request.Request(
        f"{dev.at.control}/api/v1/tenants/{TENANT}",
        json.dumps({"plan": "large", "status": status}).encode(),
        {"authorization": f"Bearer {dev.at.admin_token}", "content-type": "application/json"},
        method="PUT",
    )
    urllib.request.urlopen(request, timeout=10).close()


def _answer(dev: SidecarDev) -> int:
    request = urllib.request.Request(f"{dev.at.authz}/envoy/v1/x", headers={"x-tenant-id": TENANT})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--changes", type=int, default=CHANGES)
    print(json.dumps(measure(arguments.parse_args().changes)))


if __name__ == "__main__":
    main()
