"""What a sidecar sustains with a tenth of a core, and whether it lives in 64 MiB, as it may be given in a pod.

The whole sidecar, supervisor and worker, starts inside a control group with that much memory; if it does not get
ready there, with twice as much. When it is ready it gets 10 ms of CPU in every 100 ms. The rate is raised until
requests are lost or the median comes too late; the last rate before that is sustained.

Needs root and control groups of either version that can be written to.

    python bench/confined.py [--cpu 0.1] [--mib 64] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, Self

from bench import decision, open_loop, place, report
from tests.servers.sidecar_dev import SidecarDev

ROOT = Path("/sys/fs/cgroup")
NAME = "quota-bench"
PERIOD_US = 100_000
RATES = (250, 500, 750, 1_000, 1_500, 2_000, 3_000, 4_000, 6_000, 8_000, 10_000)
SECONDS = 4
STEP_MIB = 4
# With a tenth of every 100 ms, a request that comes when it is used up waits for the rest of them.
MEDIAN_US_MAX = 100_000


class Groups:
    """A control group for CPU and one for memory, which are one and the same in version 2."""

    def __init__(self) -> None:
        self._unified = (ROOT / "cgroup.controllers").exists()
        self.cpu = ROOT / NAME if self._unified else ROOT / "cpu" / NAME
        self.memory = ROOT / NAME if self._unified else ROOT / "memory" / NAME

    def __enter__(self) -> Self:
        if self._unified:
            (ROOT / "cgroup.subtree_control").write_text("+cpu +memory")
        for group in {self.cpu, self.memory}:
            group.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        for group in {self.cpu, self.memory}:
            while (group / "cgroup.procs").read_text():  # a killed supervisor's worker ends a moment later
                time.sleep(0.01)
            group.rmdir()

    def limit_memory(self, mib: int) -> None:
        name = "memory.max" if self._unified else "memory.limit_in_bytes"
        (self.memory / name).write_text(str(mib << 20))

    def limit_cpu(self, part: float, pids: list[int]) -> None:
        """From now on."""
        quota_us = int(PERIOD_US * part)
        if self._unified:
            (self.cpu / "cpu.max").write_text(f"{quota_us} {PERIOD_US}")
            return
        (self.cpu / "cpu.cfs_quota_us").write_text(str(quota_us))
        for pid in pids:
            (self.cpu / "cgroup.procs").write_text(str(pid))

    @property
    def peak_mib(self) -> float:
        """The most memory that was in use."""
        name = "memory.peak" if self._unified else "memory.max_usage_in_bytes"
        return round(int((self.memory / name).read_text()) / (1 << 20), 1)

    @property
    def joining(self) -> tuple[str, ...]:
        """A command before another one that has it start in here."""
        return ("sh", "-c", f'echo $$ > {self.memory}/cgroup.procs && exec "$@"', "sh")


def measure(cpu: float, mib: int) -> dict[str, Any]:
    """The rate that is sustained, and the memory in which it lives."""
    with place.installation() as dev:
        dev.put_tenant(decision.TENANT, "standard")
        dev.cli("flush")
        for given in (mib, 2 * mib):
            found = sustained(dev, cpu, given)
            if found is not None:
                return found | {"cpu": cpu, "mib_asked": mib, "ready_in_mib": least(dev, given)}
    raise SystemExit(f"it does not live in {2 * mib} MiB either")


def least(dev: SidecarDev, mib: int) -> int:
    """The least memory, in steps of STEP_MIB, in which a sidecar gets ready."""
    while mib > STEP_MIB:
        with Groups() as groups, place.folder() as directory:
            groups.limit_memory(mib - STEP_MIB)
            sidecar = place.Serving(dev.at.redis, directory / "state")
            try:
                sidecar.start(groups.joining)
            except place.NotReady:
                break
            finally:
                sidecar.kill()
        mib -= STEP_MIB
    return mib


def sustained(dev: SidecarDev, cpu: float, mib: int) -> dict[str, Any] | None:
    """The numbers, or None if it does not get ready, or not through it, in so much memory."""
    with Groups() as groups, place.folder() as directory:
        groups.limit_memory(mib)
        sidecar = place.Serving(dev.at.redis, directory / "state")
        try:
            with place.on_last_core():
                sidecar.start(groups.joining)
            worker = sidecar.worker
            place.pin(worker)
            open_loop.warm(sidecar.port, [decision.TENANT])
            open_loop.loaded(sidecar.port, 500, 1, [decision.TENANT])
            groups.limit_cpu(cpu, [worker, sidecar.pid])
            found: dict[str, Any] = {"mib": mib, "sustained_rps": 0}
            for rate in RATES:
                told = open_loop.loaded(sidecar.port, rate, SECONDS, [decision.TENANT])
                if told["lost"] or told["refused"] or told["p50_us"] > MEDIAN_US_MAX:
                    break
                found |= {"sustained_rps": rate, "p50_us": told["p50_us"], "p99_us": told["p99_us"]}
            alive = sidecar.worker == worker
            found |= {"peak_mib": groups.peak_mib}
        except (place.NotReady, OSError, IndexError):
            return None
        finally:
            sidecar.kill()
        return found if alive else None


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
        f"{found['sustained_rps']:,} requests/s with {given.cpu} CPU and {found['mib']} MiB for worker and supervisor"
        f" (p50 {found.get('p50_us', 0) / 1000:.1f} ms, p99 {found.get('p99_us', 0) / 1000:.1f} ms);"
        f" at most {found['peak_mib']} MiB were in use, and it gets ready in {found['ready_in_mib']} MiB"
    )


if __name__ == "__main__":
    main()
