"""How far a flusher knows ledger and Redis to be, shard by shard, and whether the ledger is older than it was.

Guarantees: no ledger is called up to date that Redis, or an earlier look, shows to be restored from a backup.
Gives up:   a restore that no shard shows, since nothing was counted between the backup and it (docs/outbox.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.ledger.shard import ShardState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.clock import Clock

# How old what Redis said of its epochs may be: Stripe must know for as long what was sent since (24 h).
VOUCHED_MS = 12 * 3_600_000
UNSEEN = -1


class Epochs:
    """``seen`` is the epoch of the last pass over each shard, UNSEEN when there was none since it was in doubt.

    ``generations`` are the data sets of Redis that those passes worked with.
    """

    __slots__ = ("_clock", "_floors", "_heard_ms", "generations", "seen")

    def __init__(self, shards: int, clock: Clock) -> None:
        self.seen = [UNSEEN] * shards
        self.generations = [""] * shards
        self._floors = [0] * shards
        self._heard_ms = [0] * shards
        self._clock = clock

    def hear(self, shard: int, epoch: int) -> None:
        """Note the epoch that Redis has now."""
        self._floors[shard] = max(self._floors[shard], epoch)
        self._heard_ms[shard] = self._clock.monotonic_ms()

    def doubt(self) -> None:
        """Have every shard looked at again."""
        self.seen = [UNSEEN] * len(self.seen)

    @property
    def unseen(self) -> list[int]:
        """Shards that have to be looked at."""
        return [shard for shard, epoch in enumerate(self.seen) if epoch == UNSEEN]

    def compare(self, states: Mapping[int, ShardState]) -> None:
        """Have a shard looked at even if it is idle when the ledger is not as the last pass over it left it.

        It is older, or doubted, when it was restored from a backup; it knows another generation when somebody else
        passed since, maybe over another server than this flusher reaches.
        """
        for shard, epoch in enumerate(self.seen):
            state = states.get(shard, ShardState(0, ""))
            if state.doubted or state.epoch < epoch or state.generation != self.generations[shard]:
                self.seen[shard] = UNSEEN

    def vouches(self, epochs: Mapping[int, int]) -> bool:
        """Whether a ledger with these epochs is as new as Redis knows it to be; a shard that is doubted has UNSEEN.

        One that was restored from a backup is not, until a pass has found that out and dealt with it. Before every
        shard was seen once, and when Redis has not answered for too long, nobody can say: False.
        """
        since_ms = self._clock.monotonic_ms() - VOUCHED_MS
        return all(
            epoch != UNSEEN
            and self._heard_ms[shard] > since_ms
            and epochs.get(shard, 0) >= max(epoch, self._floors[shard])
            for shard, epoch in enumerate(self.seen)
        )
