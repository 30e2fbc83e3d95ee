"""Loops of a worker's core that fail although nobody expects it: seen, and begun anew."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sidecar.embedded import EmbeddedRedis
from sidecar.enforcement import core as module
from sidecar.enforcement.adoption import Adoption
from sidecar.enforcement.changes import ChangeReader
from sidecar.enforcement.directory import Directory
from sidecar.enforcement.synchroniser import Synchroniser
from sidecar.usage.journal import Journal
from tests.servers.installation import installation

# What each of them does in its turn.
STEPS = [
    (Adoption, "_adopt"),
    (ChangeReader, "catch_up"),
    (Directory, "_to_refresh"),
    (Synchroniser, "due"),
    (Journal, "regain"),
]


@pytest.mark.parametrize(("owner", "name"), STEPS)
async def test_a_loop_that_fails_is_seen_and_goes_on(
    redis_server: EmbeddedRedis,
    redis_prefix: str,
    database: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
) -> None:
    step, calls = getattr(owner, name), []

    def failing(self: Any, *arguments: Any, **named: Any) -> Any:
        calls.append(self)
        if len(calls) == 1:
            raise RuntimeError("nobody expected this")
        return step(self, *arguments, **named)

    monkeypatch.setattr(module, "LOOP_AGAIN_S", 0.01)
    async with asyncio.timeout(20), installation(redis_server.url, redis_prefix, database, tmp_path) as inside:
        await inside.catalogue()
        await inside.flusher().flush()
        monkeypatch.setattr(owner, name, failing)
        core = await inside.core(changes_interval_ms=100)
        while len(calls) < 3:
            core.directory._wake.set()
            await asyncio.sleep(0.02)
        assert (core._counters.loop_failures, str(core.fault)) == (1, "nobody expected this")
        assert [record.levelname for record in caplog.records if "loop of the core" in record.message] == ["CRITICAL"]
        assert not any(task.done() for task in core._tasks)
