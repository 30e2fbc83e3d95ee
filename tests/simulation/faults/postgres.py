"""What strikes Postgres."""

from __future__ import annotations

from tests.simulation.faults.blows import Blows
from tests.simulation.tables import Tables
from tests.simulation.worker import SHARDS


class Postgres(Blows):
    """Outages, and restores from a backup."""

    def outage(self) -> None:
        self._world.count("postgres outage")
        self._world.postgres.stop()
        self._later(self._random.choice((300, 5_000, 20_000)), self.come_up)

    def _older(self, backup: Tables) -> bool:
        redis, keys = self._world.redis, self._world.keys
        epochs = [int(redis.command(b"HGET", (keys.epoch(shard), "epoch")) or 0) for shard in range(SHARDS)]
        return any(epoch > backup.shards.get(shard, [0])[0] for shard, epoch in enumerate(epochs))

    def come_up(self) -> None:
        self._world.postgres.up = True

    def restore(self) -> None:
        """Postgres comes back as it was a while ago; what Redis and the journals have goes there again."""
        # It is by a shard's epoch that a flusher sees it: a backup from after the last count looks like no backup.
        if self._run.backup is None or self._world.lost_state or not self._older(self._run.backup):
            return
        self._world.count("postgres restored")
        self._run.restored = True
        self._world.postgres.stop()
        self._world.restore_postgres(self._run.backup)
        self._later(self._random.choice((100, 3_000)), self.come_up)
