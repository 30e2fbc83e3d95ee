"""What every kind of fault has: the run that it strikes, and the streams from which it is drawn."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from tests.simulation.worker import SHARDS
from tests.simulation.world import Machine, World


class Run:
    """One run, and what faults remember of it.

    ``backup``: of Postgres; ``restored``: whether that came back; ``copies``: of Redis' data.
    """

    def __init__(self, world: World, random: Random, length_ms: int) -> None:
        self.world = world
        self.random = random
        self.besides = Random(
            f"{world.seed} besides"
        )  # for what was added later, so that older seeds stay what they were
        self.length_ms = length_ms
        self.backup: Any = None
        self.restored = False
        self.copies: list[Any] = []

    @property
    def resending(self) -> bool:
        """Whether a restored ledger lacks what only Redis has: a loss of both is no promise of ours."""
        if not self.restored:
            return False
        world = self.world
        known = [world.postgres.tables.shards.get(shard, [0])[0] for shard in range(SHARDS)]
        epochs = [int(world.redis.command(b"HGET", (world.keys.epoch(shard), "epoch")) or 0) for shard in range(SHARDS)]
        dirty = any(world.redis.command(b"ZCARD", (world.keys.dirty(shard),)) for shard in range(SHARDS))
        return dirty or not world.postgres.up or any(epoch > one for epoch, one in zip(epochs, known, strict=True))


class Blows:
    """Faults of one kind; every one also arranges for its own end."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._world = run.world
        self._random = run.random
        self._besides = run.besides

    def _later(self, ms: int, call: Callable[..., None], *arguments: Any) -> None:
        self._world.plan(self._world.loop.now_ms + ms, call, *arguments)

    def _machine(self) -> Machine | None:
        return self._random.choice(self._world.machines) if self._world.machines else None

    def _replace(self, machine: Machine) -> None:
        if machine in self._world.machines and not machine.alive():
            self._world.start_worker(machine)

    def _flusher(self) -> None:
        if not any(process.alive for process in self._world.flushers):
            self._world.start_flusher()
