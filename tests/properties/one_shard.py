"""One shard of a real Redis with a tenant, called as flusher and workers call it."""

from __future__ import annotations

import secrets
from typing import Any

from sidecar.store.keys import Keyspace
from tests.properties.models.server import ScriptServer, unpacked

NOW_MS = 1_772_366_400_000  # 2026-03-01 12:00:00 UTC
HOUR = NOW_MS // 3_600_000
DAY_S = NOW_MS // 86_400_000 * 86_400
RECLAIM_MS = 60_000
DAY_MS = 86_400_000
LIMIT = ["calls", "api", "day", False, 100, 100]
MONTHLY = ["calls", "api", "month", False, 100, 100]


class Redis:
    """One shard with tenant "acme", granting."""

    def __init__(self, server: ScriptServer) -> None:
        self.server = server
        self.now_ms = NOW_MS
        self.sequences: dict[str, int] = {}
        self.generation = ""
        self.direct = 0
        self.version = 0
        self.number = 0
        self.collect()
        self.publish(1, LIMIT)
        self.call("open", [self.space.writers(0)], self.generation, 1, RECLAIM_MS, "full", [])

    @property
    def space(self) -> Keyspace:
        return self.server.space

    def call(self, script: str, keys: list[str], *arguments: object) -> Any:
        self.server.set_clock(self.now_ms, "a")
        return self.server.call(script, 0, secrets.token_hex(4), keys, *arguments)

    def wait(self, ms: int) -> None:
        """Let time go by as it does with calls coming in: without jumps."""
        for _ in range(-(-ms // 5_000)):
            self.now_ms += 5_000
            self.call("find_key", [self.space.api_key("none")])

    def publish(self, revision: int, *limits: list[Any], tenant: str = "acme", document: str = "document") -> None:
        message = [tenant, revision, list(limits), self.generation, self.direct, [], self.version, self.number]
        assert self.call("publish", [self.space.tenant(tenant)], [message], document)[0] >= 0

    def sync(
        self, writer: str, windows: list[Any], leases: list[Any], *, revision: int = 1, tenant: str = "acme"
    ) -> Any:
        self.sequences[writer] = self.sequences.get(writer, 0) + 1
        return unpacked(self.send(writer, self.sequences[writer], [[tenant, revision, windows, leases]]))

    def send(self, writer: str, sequence: int, parts: list[Any]) -> bytes:
        """A sync message; the answer as it is on the wire."""
        keys = [self.space.writers(0), self.space.writer(0, writer), self.space.held(0, writer), self.space.dirty(0)]
        keys.append(self.space.called(0))
        answer: bytes = self.call("sync", keys, RECLAIM_MS, [writer, sequence, self.generation, 0, parts])
        return answer

    def lease(self, writer: str, left: int, want: int, *, small: bool = False) -> int:
        """Report one lease of the tenant's limit, and ask for more; returns what Redis set aside."""
        end_ms = (NOW_MS // 60_000 + 1) * 60_000 if small else (DAY_S + 86_400) * 1000
        report = ["calls", "calls", DAY_S, end_ms, small, left, 0, want, 0]
        return int(self.sync(writer, [], [report])[5][0][1][0][0])

    def collect(self, epoch: int = 0, most: int = 100, counters: int = 100) -> Any:
        keys = [self.space.dirty(0), self.space.writers(0)]
        collected = unpacked(self.call("collect", keys, epoch, most, RECLAIM_MS, counters))
        self.generation, self.direct, self.version, self.number = (collected[at] for at in (0, 3, 7, 11))
        return collected

    def settle(self, windows: list[Any]) -> Any:
        return self.call("settle", [self.space.dirty(0)], self.generation, 1, windows)

    def retire(self, writer: str, *, lost: bool, generation: str = "") -> Any:
        keys = [self.space.writers(0), self.space.writer(0, writer), self.space.held(0, writer)]
        return self.call("retire", keys, writer, 500, RECLAIM_MS if lost else 0, generation)

    def kept(self, key: str) -> Any:
        return self.server.state()[key][0]

    @property
    def limit(self) -> Any:
        return self.kept(self.space.limit("acme", "calls", DAY_S))
