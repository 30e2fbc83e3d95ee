"""How soon a sidecar is ready: from starting `sidecar serve --role authz` to the first 200 of /readyz.

* ``ready_ms``: with an empty state directory;
* ``ready_journal_ms``: with the journal of a killed worker that has a million cells, all of which have to be reported;
* ``import_ms``: of that, the imports of a worker alone, by a process that does nothing else;
* ``cpu_ms``: CPU time of supervisor and worker until then, which other programs on the machine hardly change;
* ``memory.start_mib``: resident memory of the worker then, which has answered nothing yet.

The median of several starts beside a running installation, whose Redis it asks.

    python bench/start.py [--rounds 5] [--cells 1000000] [--json]
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench import place, report
from sidecar.usage.journal import SUFFIX, Journal
from sidecar.usage.window import WindowKey
from tests.servers.sidecar_dev import SidecarDev

TENANTS = 10_000


def killed_journal(state: Path, cells: int) -> None:
    """The journal that a killed worker left behind: many windows of many tenants, of the last hours."""
    writer = "00000000deadbeef"
    journal = Journal(state / "journals" / f"{writer}{SUFFIX}", writer)
    hour = int(time.time()) // 3600
    for number in range(cells):
        key = WindowKey(f"t-{number % TENANTS}", "api_calls", 0, hour - number // TENANTS)
        cell = journal.cell(key.encode())
        cell.view[cell.index] = 1
    journal.close(delete=False)


def await_report(made: place.Serving) -> None:
    """Wait until the journal is being reported: where nobody finds it, being ready beside it means nothing."""
    began = time.monotonic()
    while not re.search(rb'^sidecar_store_calls_total\{verb="sync"\} [1-9]', made.metrics(), re.MULTILINE):
        if time.monotonic() - began > place.READY_S:
            sys.exit(f"the worker reported nothing of {made.state / 'journals'} in {place.READY_S:.0f} s")
        time.sleep(0.1)


def measure(dev: SidecarDev, rounds: int, cells: int) -> dict[str, dict[str, Any]]:
    """Parts of the results: ``start`` and ``memory``; medians."""
    ready: list[float] = []
    imports: list[float] = []
    cpu: list[float] = []
    memory: list[dict[str, int]] = []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import sidecar.children, sidecar.worker"], check=True)
        imports.append((time.perf_counter() - began) * 1_000)
        with place.folder() as directory:
            made = place.Serving(dev.at.redis, directory / "state")
            ready.append(made.start())
            cpu.append((place.cpu_us(made.pid) + place.cpu_us(made.worker)) / 1_000)
            memory.append(place.memory_kib(made.worker))
            made.stop()
    with place.folder() as directory:
        made = place.Serving(dev.at.redis, directory / "state")
        killed_journal(directory / "state", cells)
        ready_journal = made.start()
        try:
            await_report(made)
        finally:
            made.kill()
    return {
        "start": {
            "ready_ms": round(statistics.median(ready)),
            "ready_journal_ms": round(ready_journal),
            "import_ms": round(statistics.median(imports)),
            "cpu_ms": round(statistics.median(cpu)),
            "cells": cells,
        },
        "memory": {
            "start_mib": round(statistics.median(one["Rss"] for one in memory) / 1024, 1),
            "start_anonymous_mib": round(statistics.median(one["Anonymous"] for one in memory) / 1024, 1),
        },
    }


def publish(found: dict[str, dict[str, Any]]) -> None:
    """Keep the numbers."""
    for part, numbers in found.items():
        report.publish(part, numbers)


def text(found: dict[str, dict[str, Any]]) -> str:
    """The same for people."""
    start, memory = found["start"], found["memory"]
    return (
        f"ready after {start['ready_ms']} ms and {start['cpu_ms']} ms of CPU,"
        f" {start['import_ms']} ms for a worker's imports alone\n"
        f"ready after {start['ready_journal_ms']} ms with a killed worker's journal of {start['cells']:,} cells\n"
        f"{memory['start_mib']} MiB resident then ({memory['start_anonymous_mib']} MiB of it its own)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with place.installation() as dev:
        found = measure(dev, given.rounds, given.cells)
    publish(found)
    print(json.dumps(found) if given.json else f"{report.headline()}\n{text(found)}")


if __name__ == "__main__":
    main()
