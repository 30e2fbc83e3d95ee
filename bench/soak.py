"""Whether anything grows: a whole installation under steady load, looked at again and again.

Runs `sidecar dev` (a worker, a backoffice, real Redis and Postgres) with wrk at half of the rate that was reached at
full speed just before, or at ``--rate``. Many tenants, some of whom have reached their cap; three limits; a request id
each. Looked at: private memory and descriptors of every process, Redis' memory and keys, the journal. The first quarter
is the warming up; then the median of the first third must be that of the last third, but for a few percent.

Redis keeps one window for each tenant, metric and hour, so a new hour brings new ones; and what is used of a limit of
a minute for two minutes or three, depending on when somebody looks. Both are told and not judged.
Afterwards the ledger must have what wrk saw allowed. Prints one JSON line; exit 1 when something grew.

    python bench/soak.py [--minutes 60] [--rate 0]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import redis
from msgspec import Struct

from bench import report
from sidecar.store.keys import Keyspace
from tests.servers.accounts import put_tenant
from tests.servers.processes import backoffice_of
from tests.servers.sidecar_dev import SidecarDev

TENANTS = 300
CAPPED = 30
PAUSE_MS = 10  # of each connection between two requests
FULL_CONNECTIONS = 32
FULL_S = 5
SAMPLES = 120
WARMING = 0.25
KEYS = Keyspace()
MINUTE = "burst"  # the name of the limit of a minute
CATALOGUE = """
default_plan: standard
identity:
  - header: x-tenant-id
metrics: {api_calls: {}}
plans:
  standard:
    limits:
      api_calls: {included: 1_000_000_000_000, period: month, cap: hard}
      burst: {metric: api_calls, included: 1_000_000_000, period: minute, cap: hard}
      fair_use: {metric: api_calls, included: 1_000, period: day, cap: soft, grace: 1000h}
  capped:
    limits:
      api_calls: {included: 500, period: month, cap: hard}
default:
  costs: {api_calls: 1}
"""
LOAD = """
local number, pause = 0, %d
math.randomseed(os.time() * 1000 + pause) -- a request id that came twice would count once
if pause > 0 then delay = function() return pause end end
request = function()
  number = number + 1
  local one = math.random(%d)
  wrk.headers["x-tenant-id"] = (one <= %d and "capped-" or "standard-") .. one
  wrk.headers["x-request-id"] = "soak-" .. number .. "-" .. math.random(1000000000)
  return wrk.format("GET", "/envoy/v1/things/" .. math.random(1000))
end
"""


class Bound(Struct, frozen=True):
    """How much more a quantity may be at the end: a share of what it was, or an amount, whichever is more."""

    share: float
    amount: float


# By the last part of a quantity's name.
BOUNDS = {
    "memory_kb": Bound(0.05, 2_048),
    "descriptors": Bound(0, 3),
    "keys": Bound(0.01, 20),
    "journal_kb": Bound(0, 1_024),
}
WINDOW_KB = 1.0  # what a window may take in Redis


class Change(Struct, frozen=True):
    """How a quantity was in the first and in the last third after the warming up."""

    first: float
    last: float
    most: float
    flat: bool


def judge(samples: Sequence[dict[str, float]]) -> dict[str, Change]:
    """Whether each quantity that has a bound stayed within it."""
    steady = samples[int(len(samples) * WARMING) :]
    third = max(1, len(steady) // 3)
    found = {}
    windows = _median(steady[-third:], "redis.windows") - _median(steady[:third], "redis.windows")
    for name in steady[0]:
        bound = BOUNDS.get(name.rpartition(".")[2])
        if bound is None:
            continue
        first, last = _median(steady[:third], name), _median(steady[-third:], name)
        room = max(first * bound.share, bound.amount)
        if name == "redis.memory_kb":
            room += max(0.0, windows) * WINDOW_KB
        found[name] = Change(first, last, max(one[name] for one in steady), last - first <= room)
    return found


def _median(samples: Sequence[dict[str, float]], name: str) -> float:
    return statistics.median(one[name] for one in samples)


def look(dev: SidecarDev) -> dict[str, float]:
    """Every quantity now."""
    pids = {
        "supervisor": dev.pid,
        "worker": int(dev.now().pids["authz"][0]),
        "backoffice": backoffice_of(dev),
        "redis": int(dev.now().pids["redis"]),
    }
    found: dict[str, float] = {}
    for name, pid in pids.items():
        if name != "redis":
            status = Path(f"/proc/{pid}/status").read_text()
            found[f"{name}.memory_kb"] = float(re.findall(r"^RssAnon:\s+(\d+)", status, re.MULTILINE)[0])
        found[f"{name}.descriptors"] = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    with redis.Redis.from_url(dev.at.redis) as client:
        windows, minutes = (
            sum(1 for _ in client.scan_iter(match=match, count=1_000))
            for match in ("sc:*:window:*", f"sc:*:limit:*:{MINUTE}:*")
        )
        found["redis.windows"] = windows
        found["redis.minutes"] = minutes
        found["redis.keys"] = client.dbsize() - windows - minutes
        found["redis.memory_kb"] = client.info("memory")["used_memory"] / 1024
    journals = (dev.state / "journals").glob("*")
    found["worker.journal_kb"] = sum(path.stat().st_blocks for path in journals) / 2
    return found


class Load:
    """wrk in the background."""

    def __init__(self, url: str, folder: Path, *, seconds: int, connections: int, pause_ms: int) -> None:
        script = folder / "load.lua"
        script.write_text(LOAD % (pause_ms, TENANTS, CAPPED))
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--timeout", "10", "-s", str(script), url]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def ended(self) -> tuple[int, int]:
        """Wait for its end; answers in all, and those that allowed."""
        told, _ = self._process.communicate()
        if self._process.returncode or "Socket errors" in told:
            raise SystemExit(f"wrk failed:\n{told}")
        answered = int(re.findall(r"(\d+) requests in", told)[0])
        refused = re.findall(r"Non-2xx or 3xx responses: (\d+)", told)
        return answered, answered - (int(refused[0]) if refused else 0)


def soak(minutes: float, rate: int, history: Path | None = None) -> dict[str, Any]:
    """Run it; what was measured. Each look is a line of ``history``."""
    with installation() as (dev, folder):
        _, allowed = Load(dev.at.authz, folder, seconds=FULL_S, connections=FULL_CONNECTIONS, pause_ms=0).ended()
        rate = rate or allowed // FULL_S // 2
        connections = max(1, rate * PAUSE_MS // 1_000)
        seconds = round(minutes * 60)
        load = Load(dev.at.authz, folder, seconds=seconds, connections=connections, pause_ms=PAUSE_MS)
        began = time.monotonic()
        samples = []
        for number in range(1, SAMPLES + 1):
            time.sleep(max(0.0, began + (seconds - 2) * number / SAMPLES - time.monotonic()))
            samples.append(look(dev))
            if history is not None:
                with history.open("a") as file:
                    file.write(json.dumps(samples[-1]) + "\n")
        answered, more = load.ended()
        allowed += more
        dev.cli("flush")
        counted = asyncio.run(in_ledger(dev.at.postgres))
        # wrk hangs up on what is in flight at the end.
        if not allowed <= counted <= allowed + FULL_CONNECTIONS + connections:
            raise SystemExit(f"{allowed} requests were allowed, but the ledger has {counted}")
        dev.cli("verify")
    changes = judge(samples)
    return {
        "minutes": minutes,
        "rate_per_s": round(answered / seconds),
        "answered": answered,
        "allowed": allowed,
        "ledger": counted,
        "windows": samples[-1]["redis.windows"],
        "minute_keys": [min(one["redis.minutes"] for one in samples), max(one["redis.minutes"] for one in samples)],
        "quantities": {name: [change.first, change.last, change.most] for name, change in changes.items()},
        "not_flat": [name for name, change in changes.items() if not change.flat],
    }


async def in_ledger(dsn: str) -> int:
    """Everything that was counted."""
    connection = await asyncpg.connect(dsn)
    try:
        return int(await connection.fetchval("select coalesce(sum(amount), 0) from usage_windows where scope = ''"))
    finally:
        await connection.close()


@contextmanager
def installation() -> Iterator[tuple[SidecarDev, Path]]:
    folder = Path(tempfile.mkdtemp(prefix="quota-soak-"))
    folder.chmod(0o755)  # Postgres runs as somebody else when we are root
    try:
        (folder / "catalogue.yaml").write_text(CATALOGUE)
        dev = SidecarDev(folder / "dev", folder / "catalogue.yaml")
        dev.start()
        try:
            for number in range(1, CAPPED + 1):
                put_tenant(dev, "capped", f"capped-{number}")
            yield dev, folder
        finally:
            dev.stop()
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=int, default=0, help="requests a second; 0 is half of what is possible")
    parser.add_argument("--history", type=Path, help="a file for every look, a line of JSON each")
    given = parser.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("this needs wrk; install the Debian package wrk")
    found = soak(given.minutes, given.rate, given.history)
    report.publish("soak", found)
    print(json.dumps(found))
    sys.exit(bool(found["not_flat"]))


if __name__ == "__main__":
    main()
