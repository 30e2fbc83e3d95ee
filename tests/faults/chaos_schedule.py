"""Which faults strike when: the same seed plans the same ones.

Guarantees: what a fault strikes, and what it needs, is left alone by others until it is over and had its rest; every
            kind comes before any comes again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from random import Random

from msgspec import Struct

from tests.faults.chaos_kinds import KINDS, Kind
from tests.faults.chaos_place import Place

FIRST_S = 2.0
LEFT_OUT = "disk full is left out: no file system may be mounted here, which takes root"


class Fault(Struct, frozen=True):
    """One fault of a plan; times in seconds since the traffic began."""

    at_s: float
    kind: str
    target: str
    seconds: float
    seed: int


def plan(seed: int, gap_s: tuple[float, float], kinds: Collection[str] = KINDS.keys()) -> Iterator[Fault]:
    """Faults of these kinds without end, in the order of their times."""
    chance = Random(seed)
    free_at: dict[str, float] = {}
    deck: list[str] = []
    at_s = FIRST_S
    while True:
        deck = deck or chance.sample(sorted(kinds), len(kinds))
        found = _first_free(deck, at_s, free_at, chance)
        if found is None:
            at_s += 0.5
            continue
        name, target = found
        deck.remove(name)
        kind = KINDS[name]
        seconds = round(chance.uniform(*kind.seconds), 2)
        for struck in (target, *kind.needs):
            free_at[struck] = at_s + seconds + kind.rest_s
        yield Fault(round(at_s, 2), name, target, seconds, chance.randrange(10**9))
        at_s += chance.uniform(*gap_s)


def _first_free(deck: list[str], at_s: float, free_at: dict[str, float], chance: Random) -> tuple[str, str] | None:
    for name in deck:
        kind: Kind = KINDS[name]
        if any(free_at.get(needed, 0.0) > at_s for needed in kind.needs):
            continue
        targets = [target for target in kind.targets if free_at.get(target, 0.0) <= at_s]
        if targets:
            return name, chance.choice(targets)
    return None


class Schedule:
    """Carries a plan out; ``done`` counts faults by kind."""

    def __init__(self, place: Place, tell: Callable[[str], None]) -> None:
        self.done: Counter[str] = Counter()
        self._place = place
        self._tell = tell
        self._locks: dict[str, asyncio.Lock] = {}
        self._began_s = 0.0

    async def run(self, faults: list[Fault]) -> None:
        """Strike at the planned times; returns when the last fault is over. Raises what went wrong in the harness."""
        self._began_s = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as tasks:
            for fault in faults:
                await asyncio.sleep(max(0.0, self._began_s + fault.at_s - asyncio.get_running_loop().time()))
                tasks.create_task(self._strike(fault))

    async def _strike(self, fault: Fault) -> None:
        kind = KINDS[fault.kind]
        wanted = sorted({fault.target, *kind.needs})
        locks = [self._locks.setdefault(name, asyncio.Lock()) for name in wanted]
        for lock in locks:  # in one order, so that two faults never wait for each other
            await lock.acquire()
        try:
            if fault.kind == "disk full" and not self._place.programs[fault.target].disk.mounted:
                self._tell(LEFT_OUT)
                return
            what = f"{fault.kind}: {fault.target}" + (f" for {fault.seconds} s" if fault.seconds else "")
            self._tell(what)
            await kind.act(self._place, fault.target, fault.seconds, Random(fault.seed))
            self.done[fault.kind] += 1
            self._tell(f"  over: {what}")
        finally:
            for lock in locks:
                lock.release()
