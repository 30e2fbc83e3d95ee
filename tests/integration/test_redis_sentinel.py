"""The whole job on a master that sentinels name; servers and sentinels have passwords of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.clock import Clock
from sidecar.errors import StoreRefused
from sidecar.store.client import Store
from sidecar.store.keys import Keyspace
from tests.servers.load_client import Tally
from tests.servers.redis_sentinel import RedisSentinel
from tests.servers.whole_job import Job, do_the_whole_job, stay_exact

pytestmark = pytest.mark.timeout(180)


async def test_the_whole_job_runs_behind_sentinels(servers_directory: Path, database: str, tmp_path: Path) -> None:
    async with (
        RedisSentinel(servers_directory / f"sentinel-{tmp_path.name}") as redis,
        Job(redis.url, database, tmp_path) as job,
    ):
        await do_the_whole_job(job, ["acme"])
        store = Store(redis.url, Keyspace(), Clock(), identity="t", timeout_ms=5_000)
        try:
            await store.check()
            await redis.servers[1].ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
            # The replica is not asked anything today, and may be the master of tomorrow.
            with pytest.raises(StoreRefused, match=f"{redis.servers[1].port} has maxmemory-policy"):
                await store.check()
        finally:
            await store.close()


@pytest.mark.slow
async def test_a_master_killed_under_traffic_costs_no_count_and_no_unit(
    servers_directory: Path, database: str, tmp_path: Path
) -> None:
    async with (
        RedisSentinel(servers_directory / f"sentinel-{tmp_path.name}") as redis,
        Job(redis.url, database, tmp_path) as job,
    ):

        async def trouble(seen: Tally) -> None:
            old = await redis.master()
            old.kill()
            await redis.fails_over(old)

        await stay_exact(job, "acme", "nova", trouble)
