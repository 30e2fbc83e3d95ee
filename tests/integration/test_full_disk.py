"""A worker whose disk was full counts in its journal as soon as there is room again."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from sidecar.embedded import EmbeddedRedis
from sidecar.enforcement import core as cores
from sidecar.usage.recovery import inspect
from tests.servers.installation import installation


def refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_what_was_counted_on_a_full_disk_is_in_the_journal_once_there_is_room(
    redis_server: EmbeddedRedis,
    redis_prefix: str,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Charges that were worked out meanwhile, and the fast path, count there as well from then on."""
    monkeypatch.setattr(cores, "WATCH_INTERVAL_S", 0.01)
    async with installation(redis_server.url, redis_prefix, database, tmp_path) as inside:
        await inside.catalogue()
        await inside.flusher().flush()
        with monkeypatch.context() as full:
            full.setattr(os, "posix_fallocate", refuse)
            core = await inside.core()
            for tenant in ("acme", "globex", "acme", "acme"):
                assert (await inside.ask(core, tenant)).allow
            assert not core.journal.durable
        while not core.journal.durable:
            await asyncio.sleep(0.01)
        for tenant in ("acme", "initech"):
            assert (await inside.ask(core, tenant)).allow
        assert {window.key.tenant: window.value for window in inspect(core.journal.path)[1]} == {
            "acme": 4,
            "globex": 1,
            "initech": 1,
        }
        await core.stop(0.1)  # the journal stays, as after a kill
        await inside.core("two")
        await inside.flusher().flush()
        assert [await inside.counted(tenant) for tenant in ("acme", "globex", "initech")] == [4, 1, 1]
