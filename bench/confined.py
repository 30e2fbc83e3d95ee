"""What a sidecar sustains with a tenth of a core and 64 MiB, as it may be given in a pod.

The worker is put into control groups: 10 ms of CPU in every 100 ms, and 64 MiB of memory. The supervisor beside it is
in the same CPU group, since a container has one; its own memory is printed and stays outside, see bench/README.md.
The rate is raised until requests are lost or the median comes too late; the last rate before that is sustained.

Needs root and control groups of either version that can be written to.

    python bench/confined.py [--cpu 0.1] [--mib 64] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import decision, open_loop, place, report

ROOT = Path("/sys/fs/cgroup")
NAME = "quota-bench"
PERIOD_US = 100_000
RATES = (250, 500, 750, 1_000, 1_500, 2_000, 3_000, 4_000, 6_000, 8_000, 10_000)
SECONDS = 4
# With a tenth of every 100 ms, a request that comes when it is used up waits for the rest of them.
MEDIAN_US_MAX = 100_000


@contextlib.contextmanager
def confined(cpu: float, mib: int, cpu_of: list[int], memory_of: list[int]) -> Iterator[None]:
    """Put processes into groups of their own, which are gone afterwards."""
    unified = (ROOT / "cgroup.controllers").exists()
    made = [ROOT / NAME] if unified else [ROOT / "cpu" / NAME, ROOT / "memory" / NAME]
    for group in made:
        group.mkdir(exist_ok=True)
    quota_us = int(PERIOD_US * cpu)
    try:
        if unified:
            (ROOT / "cgroup.subtree_control").write_text("+cpu +memory")
            (made[0] / "cpu.max").write_text(f"{quota_us} {PERIOD_US}")
            (made[0] / "memory.max").write_text(str(mib << 20))
            _move(made[0], cpu_of)
        else:
            (made[0] / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (made[0] / "cpu.cfs_quota_us").write_text(str(quota_us))
            (made[1] / "memory.limit_in_bytes").write_text(str(mib << 20))
            _move(made[0], cpu_of)
            _move(made[1], memory_of)
        yield
    finally:
        for group in made:
            _move(group.parent, [int(pid) for pid in (group / "cgroup.procs").read_text().split()])
            group.rmdir()


def _move(group: Path, pids: list[int]) -> None:
    for pid in pids:
        (group / "cgroup.procs").write_text(str(pid))


def measure(cpu: float, mib: int) -> dict[str, Any]:
    """The rate that is sustained, and what the processes need."""
    found: dict[str, Any] = {"cpu": cpu, "mib": mib, "sustained_rps": 0}
    with place.installation(decision.catalogue()) as dev:
        dev.put_tenant(decision.TENANT, "standard")
        dev.cli("flush")
        with place.serving(dev) as sidecar:
            worker, supervisor = sidecar.worker, sidecar.process.pid if sidecar.process else 0
            open_loop.loaded(sidecar.port, 1_000, 1, [decision.TENANT])
            with confined(cpu, mib, [worker, supervisor], [worker]):
                for rate in RATES:
                    told = open_loop.loaded(sidecar.port, rate, SECONDS, [decision.TENANT])
                    if told["lost"] or told["refused"] or told["p50_us"] > MEDIAN_US_MAX:
                        break
                    found |= {"sustained_rps": rate, "p50_us": told["p50_us"], "p99_us": told["p99_us"]}
                if sidecar.worker != worker:
                    raise SystemExit("the worker did not live through it")
                found["worker_mib"] = round(place.memory_kib(worker)["Rss"] / 1024, 1)
                found["supervisor_mib"] = round(place.memory_kib(supervisor)["Rss"] / 1024, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", type=float, default=0.1)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if os.geteuid() or not os.access(ROOT, os.W_OK):
        raise SystemExit(f"this benchmark makes control groups: it needs root and a writable {ROOT}")
    found = measure(given.cpu, given.mib)
    report.publish("confined", found)
    if given.json:
        print(json.dumps(found))
        return
    print(report.headline())
    print(
        f"{found['sustained_rps']:,} requests/s with {given.cpu} CPU and {given.mib} MiB"
        f" (p50 {found.get('p50_us', 0) / 1000:.1f} ms, p99 {found.get('p99_us', 0) / 1000:.1f} ms);"
        f" resident: worker {found['worker_mib']} MiB, supervisor {found['supervisor_mib']} MiB"
    )


if __name__ == "__main__":
    main()
