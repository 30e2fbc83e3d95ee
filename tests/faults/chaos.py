"""`make chaos`: a whole installation under steady traffic while a seeded schedule of faults strikes it.

Afterwards every answer, count and bill is compared. Prints one JSON line, and another with the details on standard
error; exit 1 when something is violated. The history and the logs of all programs are kept in a folder named there.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import IO

import msgspec

from tests.faults.chaos_numbers import TakenBack, at_stripe, checked, in_ledger, lost_in_ledger, units_lost
from tests.faults.chaos_place import Place
from tests.faults.chaos_schedule import Fault, Schedule, plan
from tests.faults.chaos_settling import settle
from tests.faults.chaos_traffic import ChaosTraffic
from tests.faults.chaos_verdict import Numbers, Verdict, judge

CAPS = (60, 200, 600)
BILLED = 6
GAP_S = (0.8, 3.4)
LAST_S = 4.0
WARM_S = 2.0


class History:
    """What happened when, for a person to read."""

    def __init__(self, file: IO[str], *, aloud: bool) -> None:
        self._file = file
        self._aloud = aloud
        self._began = time.monotonic()

    def tell(self, what: str) -> None:
        text = f"{time.monotonic() - self._began:8.2f}  {what}"
        self._file.write(text + "\n")
        self._file.flush()
        if self._aloud:
            print(text, file=sys.stderr, flush=True)


async def run(
    folder: Path, history: History, faults: list[Fault], *, seed: int, rate_per_s: int, patient: bool = True
) -> Verdict:
    """One run with these faults, on an installation of its own below the folder."""
    place = Place(folder, history.tell)
    try:
        await place.start()
        clients = await place.clients(BILLED, _caps(faults[-1].at_s, rate_per_s, seed))
        await place.run_programs()
        history.tell(f"{len(place.programs)} programs ready, {len(clients)} tenants")
        schedule, taken_back = Schedule(place, history.tell), TakenBack(place, history.tell)
        watching = asyncio.create_task(taken_back.run())
        async with ChaosTraffic(place, clients, rate_per_s=rate_per_s, seed=seed) as traffic:
            await asyncio.sleep(WARM_S)
            await schedule.run(faults)
            await asyncio.sleep(LAST_S)
        history.tell(f"traffic ended: {traffic.answered} allowed, {traffic.unknown} unknown")
        problems = await settle(place, history.tell, patient=patient)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        numbers = Numbers(
            faults=schedule.done,
            book=traffic.book,
            checked=checked(place, clients),
            ledger=await in_ledger(place),
            stripe=await at_stripe(place),
            taken_back=taken_back.by_shard,
            unread=await taken_back.unread(),
            lost=await lost_in_ledger(place),
            units_lost=await units_lost(place),
            control=traffic.control,
            problems=[*place.problems, *problems],
        )
        verdict = judge(clients, numbers)
        for violation in verdict.details.violations:
            history.tell(f"VIOLATION {violation}")
        return verdict
    finally:
        await place.stop()


def _caps(seconds: float, rate_per_s: int, seed: int) -> list[int]:
    """As many hard caps as the traffic can use up, and some more."""
    chance = Random(seed)
    weights = (4, 3, 2)
    mean = sum(cap * weight for cap, weight in zip(CAPS, weights, strict=True)) / sum(weights)
    return chance.choices(CAPS, weights, k=10 + math.ceil(seconds * rate_per_s * 0.6 / mean))


def planned(seed: int, *, seconds: float = 0, count: int = 0) -> list[Fault]:
    """The faults of the first seconds of a plan, or so many of them."""
    faults = plan(seed, GAP_S)
    if count:
        return list(itertools.islice(faults, count))
    return list(itertools.takewhile(lambda fault: fault.at_s < seconds, faults))


def report(verdict: Verdict) -> int:
    """Print the summary, and the details on standard error; the exit status."""
    print(msgspec.json.encode(verdict.details).decode(), file=sys.stderr)
    print(msgspec.json.encode(verdict.summary).decode())
    return 1 if verdict.details.violations else 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--rate", type=int, default=200, help="requests a second")
    parser.add_argument("--faults", type=int, default=0, help="so many faults instead of a time")
    parser.add_argument("--aloud", action="store_true", help="tell the history on standard error as it happens")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="quota-sidecar-chaos-"))
    folder.chmod(0o755)
    print(f"seed {given.seed}, history and logs in {folder}", file=sys.stderr, flush=True)
    faults = planned(given.seed, seconds=given.minutes * 60, count=given.faults)
    with (folder / "history").open("w", encoding="utf-8") as file:
        history = History(file, aloud=given.aloud)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing is left behind, whoever ends it
        verdict = asyncio.run(run(folder / "run", history, faults, seed=given.seed, rate_per_s=given.rate))
    for state in ("postgres", "redis-a", "redis-b"):
        shutil.rmtree(folder / "run" / state, ignore_errors=True)
    sys.exit(report(verdict))


if __name__ == "__main__":
    main()
