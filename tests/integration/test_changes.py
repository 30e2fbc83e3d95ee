"""What is announced between a worker's first look at Redis and its place in the stream of changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.embedded import EmbeddedRedis
from tests.servers.installation import CATALOGUE, Installation, installation


@pytest.fixture
async def inside(
    redis_server: EmbeddedRedis, redis_prefix: str, database: str, tmp_path: Path
) -> AsyncIterator[Installation]:
    async with installation(redis_server.url, redis_prefix, database, tmp_path) as opened:
        yield opened


async def test_a_catalogue_that_changes_while_a_worker_starts_is_not_missed(inside: Installation) -> None:
    store = inside.store
    await store.put_catalogue(1, CATALOGUE)
    await store.announce([("catalogue", "1")])
    core = await inside.core(changes_interval_ms=5_000)
    # The loops have been started and have not had a turn yet: the worker read the catalogue, not the stream.
    await store.put_catalogue(2, CATALOGUE.replace("100", "200"))
    await store.announce([("catalogue", "2")])
    await core.changes.catch_up()
    assert core.enforcer.policy.revision == 2


async def test_whoever_flushes_a_worker_finds_it_knowing_what_was_announced_before(inside: Installation) -> None:
    store = inside.store
    await store.put_catalogue(1, CATALOGUE)
    core = await inside.core(changes_interval_ms=5_000)
    await core.changes.catch_up()
    await store.put_catalogue(2, CATALOGUE)
    await store.announce([("catalogue", "2")])
    await core.flush()
    assert core.enforcer.policy.revision == 2
