"""Runs seeds and prints one JSON line; ``--seed N --verbose`` replays one and prints its history.

python -m tests.simulation.run --seeds 2000 [--from N] [--jobs N]
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from random import Random
from typing import Self

from msgspec import Struct

from tests.simulation import invariants, lua
from tests.simulation.billing.run import bill
from tests.simulation.faults.plan import Faults
from tests.simulation.world import World, simulated

LENGTHS_MS = (4_000, 4_000, 6_000, 8_000, 8_000, 12_000, 20_000)
CHUNK = 2  # seeds
CHUNKS_A_LIFE = 64  # garbage is not collected: it goes with the process, and so does what is never quite gone
TMPFS = Path("/dev/shm")  # noqa: S108 - journals are written there and nothing else


class Outcome(Struct):
    """What one seed came to."""

    seed: int
    steps: int
    admitted: int
    faults: dict[str, int]
    violations: list[str]
    history: list[str]


def simulate(seed: int, *, minutes: bool | None = None, ends: bool | None = None) -> Outcome:
    """Two runs, from beginning to rest: of what counts and limits, and of what bills.

    ``minutes``: with limits of seconds and minutes, or without; ``ends``: with workers that end between counting and
    answering or at a file, or without; None as the seed says.
    """
    world, billing = count(seed, minutes=minutes, ends=ends), bill(seed)
    faults = Counter(world.network.faults)
    faults.update(billing.faults)
    return Outcome(
        seed,
        world.loop.steps + billing.loop.steps,
        world.oracle.admitted,
        dict(faults),
        world.oracle.violations + billing.violations,
        [*world.history, "           what bills:", *billing.history],
    )


def count(seed: int, *, minutes: bool | None = None, ends: bool | None = None) -> World:
    """One run of what counts and limits."""
    folder = Path(tempfile.mkdtemp(prefix="simulation-", dir=TMPFS if TMPFS.is_dir() else None))
    random = Random(seed * 7 + 3)
    world = World(seed, folder, minutes=minutes, ends=ends)
    try:
        with (
            simulated(Random(seed + 2), world.loop, world.limits_per_sync),
            world.ends.at_files() if world.has_ends else nullcontext(),
        ):
            try:
                _live(world, random)
            except Exception:  # noqa: BLE001 - whatever breaks is a finding of this seed
                world.oracle.violated("crash", traceback.format_exc())
    finally:
        for worker in [*world.workers(), *world.gone]:
            if worker.process.alive:
                worker.kill(torn=False)
        lua.ENGINE.forget()
        shutil.rmtree(folder, ignore_errors=True)
    return world


def _live(world: World, random: Random) -> None:
    length_ms = random.choice(LENGTHS_MS)
    world.put_plans()
    world.start_flusher()
    for _ in range(random.choice((1, 2, 2, 3))):
        machine = world.add_machine()
        for _ in range(random.choice((1, 1, 2))):
            world.start_worker(machine)
    world.loop.run_until(1_500)
    Faults(world, random, length_ms).plan()
    at, rate = 1_500, random.choice((3, 10, 30))
    while at < length_ms:
        at += random.randrange(1, 2_000 // rate)
        world.loop.at(at, world.request)
    world.loop.run_until(length_ms)
    invariants.heal(world)
    invariants.check(world)


def quiet() -> None:
    """The program's log lines and the remains of killed processes would drown the result."""
    logging.disable(logging.CRITICAL)
    sys.unraisablehook = lambda _about: None
    gc.disable()
    gc.freeze()  # what is imported stays: it need not be looked through after each few runs


def one(seed: int, *, minutes: bool | None = None, ends: bool | None = None) -> Outcome:
    outcome = simulate(seed, minutes=minutes, ends=ends)
    if not outcome.violations:
        outcome.history = []
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.run")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--from", type=int, default=0, dest="first")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--minutes", action="store_true", help="limits of seconds and minutes in every seed")
    parser.add_argument("--ends", action="store_true", help="in every seed workers that end at counts and files")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    quiet()
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + options.seeds)
    began = time.monotonic()
    faults: Counter[str] = Counter()
    steps = 0
    bad: list[Outcome] = []
    call = partial(one, minutes=options.minutes or None, ends=options.ends or None)
    with multiprocessing.Pool(options.jobs, maxtasksperchild=CHUNKS_A_LIFE) if len(seeds) > 1 else _Alone() as pool:
        for outcome in pool.imap_unordered(call, seeds, chunksize=CHUNK):
            faults.update(outcome.faults)
            steps += outcome.steps
            if outcome.violations:
                bad.append(outcome)
                print(f"seed {outcome.seed}: {outcome.violations[0]}", file=sys.stderr)
            if options.verbose:
                print("\n".join(outcome.history))
    minutes = (time.monotonic() - began) / 60
    print(f"{len(seeds) / minutes:.0f} seeds a minute in {options.jobs} processes", file=sys.stderr)
    print(
        json.dumps(
            {"seeds": len(seeds), "steps": steps, "faults": dict(sorted(faults.items())), "violations": len(bad)}
        )
    )
    return 1 if bad else 0


class _Alone:
    """A pool of this process only, for a single seed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_about: object) -> None:
        return

    def imap_unordered(self, call: partial[Outcome], seeds: Iterable[int], chunksize: int) -> list[Outcome]:
        return [simulate(seed, **call.keywords) for seed in seeds]


if __name__ == "__main__":
    sys.exit(main())
