"""The ledger's tables in memory: what a backup of it holds."""

from __future__ import annotations

from typing import Any

import msgspec

CounterKey = tuple[str, str, str, int, int, str]
WindowOf = tuple[str, str, str, int, int]


class Tables(msgspec.Struct):
    """Everything a backup holds."""

    counters: dict[CounterKey, int] = {}
    folded: dict[WindowOf, dict[str, int]] = {}
    tenants: dict[str, dict[str, Any]] = {}
    plans: list[tuple[int, str, int]] = []
    folded_before: int = 0  # hour
    shards: dict[int, list[Any]] = {}
    doubted: dict[int, bool] = {}
    lost_leases: dict[tuple[int, str], int] = {}
    revision: int = 0

    def copy(self) -> Tables:
        tenants = {name: dict(row) for name, row in self.tenants.items()}
        shards = {shard: list(state) for shard, state in self.shards.items()}
        return Tables(
            dict(self.counters),
            dict(self.folded),
            tenants,
            list(self.plans),
            self.folded_before,
            shards,
            dict(self.doubted),
            dict(self.lost_leases),
            self.revision,
        )

    def amount(self, key: CounterKey) -> int:
        """What one writer counted in a window, folded or not."""
        return self.counters.get(key, 0) + self.folded.get(key[:5], {}).get(key[5], 0)

    def counted(self) -> dict[CounterKey, int]:
        """What every writer counted, folded or not."""
        found = dict(self.counters)
        for window, marks in self.folded.items():
            for writer, amount in marks.items():
                found[*window, writer] = found.get((*window, writer), 0) + amount
        return found
