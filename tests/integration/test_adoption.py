"""Journals of dead writers with many windows, taken to Redis and the ledger in pieces."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path

import pytest
import redis.asyncio

from sidecar.embedded import EmbeddedRedis
from sidecar.enforcement import adoption
from sidecar.enforcement.adoption import Adoption
from sidecar.errors import StoreUnavailable
from sidecar.store.client import Store
from sidecar.store.messages import SyncMessage, SyncReply
from sidecar.telemetry import CoreCounters
from sidecar.usage.journal import HEADER_BYTES, Journal
from sidecar.usage.recovery import DeadJournal, adopt_slowly
from sidecar.usage.window import WindowKey
from tests.servers.installation import installation

WRITER = "00000000000000cc"
TENANTS = 3
HOURS = 600


def dead(directory: Path, now_s: int) -> None:
    """A journal of TENANTS times HOURS windows, each with one unit."""
    journal = Journal(directory / f"{WRITER}.journal", WRITER)
    for number in range(TENANTS * HOURS):
        key = WindowKey(f"t{number % TENANTS}", "api_calls", 0, now_s // 3600 - number // TENANTS)
        cell = journal.cell(key.encode())
        cell.view[cell.index] = 1
    journal.close(delete=False)


@pytest.mark.parametrize("wiped_at", [0, 3, 7])
async def test_a_large_journal_counts_once_also_when_redis_is_wiped_while_it_is_reported(
    fresh_redis: Callable[[], Awaitable[EmbeddedRedis]],
    redis_prefix: str,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wiped_at: int,
) -> None:
    monkeypatch.setattr(adoption, "POLL_INTERVAL_S", 0.02)
    server, counters = await fresh_redis(), CoreCounters()
    sent: list[int] = []
    sync = Store.sync

    async def wiping(self: Store, shard: int, message: SyncMessage, reclaim_after_ms: int) -> SyncReply:
        sent.append(sum(len(part.windows) for part in message.parts))
        if len(sent) == wiped_at:
            async with redis.asyncio.Redis.from_url(server.url) as direct:
                await direct.flushall()
        return await sync(self, shard, message, reclaim_after_ms)

    monkeypatch.setattr(Store, "sync", wiping)
    async with installation(server.url, redis_prefix, database, tmp_path) as inside:
        await inside.catalogue()
        for number in range(TENANTS):
            await inside.tenant(f"t{number}", "free")
        flusher = inside.flusher()
        await flusher.flush()
        dead(tmp_path, inside.clock.wall_s())
        running = asyncio.create_task(Adoption(tmp_path, inside.new_store(), counters, 60_000).run())
        async with asyncio.timeout(40):
            while not counters.journals_adopted:
                with contextlib.suppress(StoreUnavailable):  # a pass that the wipe got into
                    await flusher.flush()
                await asyncio.sleep(0.02)
        running.cancel()
        assert [await inside.counted(f"t{number}") for number in range(TENANTS)] == [HOURS] * TENANTS
    assert max(sent) == adoption.WINDOWS_PER_MESSAGE
    assert not list(tmp_path.glob("*.journal"))


async def test_a_journal_that_is_not_whole_when_it_is_reported_is_not_deleted(
    fresh_redis: Callable[[], Awaitable[EmbeddedRedis]],
    redis_prefix: str,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adoption, "POLL_INTERVAL_S", 0.02)
    monkeypatch.setattr(adoption, "SCAN_INTERVAL_S", 0.02)
    server, counters = await fresh_redis(), CoreCounters()
    path = tmp_path / f"{WRITER}.journal"
    stayed: list[bool] = []

    def cutting(directory: Path) -> Generator[DeadJournal | None]:
        """Cut the journal short once, between its first and its second reading."""
        for found in adopt_slowly(directory):
            if found is None or stayed:
                yield found
                continue
            whole = path.read_bytes()
            os.truncate(path, HEADER_BYTES)
            yield found
            stayed.append(path.exists())
            path.write_bytes(whole)

    monkeypatch.setattr(adoption, "adopt_slowly", cutting)
    async with installation(server.url, redis_prefix, database, tmp_path) as inside:
        await inside.catalogue()
        for number in range(TENANTS):
            await inside.tenant(f"t{number}", "free")
        flusher = inside.flusher()
        await flusher.flush()
        dead(tmp_path, inside.clock.wall_s())
        running = asyncio.create_task(Adoption(tmp_path, inside.new_store(), counters, 60_000).run())
        async with asyncio.timeout(40):
            while not counters.journals_adopted:
                await flusher.flush()
                await asyncio.sleep(0.02)
        running.cancel()
        assert [await inside.counted(f"t{number}") for number in range(TENANTS)] == [HOURS] * TENANTS
    assert stayed == [True]
    assert not list(tmp_path.glob("*.journal"))
