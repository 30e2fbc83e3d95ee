"""The whole job on a master that sentinels name; servers and sentinels have passwords of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.clock import Clock
from sidecar.errors import StoreRefused, StoreUnavailable
from sidecar.store.client import Store
from sidecar.store.keys import Keyspace
from sidecar.store.messages import StoredCatalogue
from tests.servers.certificates import Certificates
from tests.servers.load_client import Tally
from tests.servers.redis_node import eventually
from tests.servers.redis_secured import tls_files, tls_settings
from tests.servers.redis_sentinel import RedisSentinel
from tests.servers.whole_job import Job, do_the_whole_job, lose_everything, stay_exact

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


@pytest.mark.slow
async def test_the_whole_job_runs_behind_sentinels_over_tls_as_the_users_that_are_shipped(
    servers_directory: Path, database: str, tmp_path: Path
) -> None:
    certificates = Certificates(servers_directory / f"tls-{tmp_path.name}")
    async with RedisSentinel(servers_directory / f"sentinel-{tmp_path.name}", certificates) as redis:
        office = {"SIDECAR_POSTGRES_DSN": database, "SIDECAR_CATALOGUE_FILE": str(tmp_path / "catalogue.yaml")}
        parts = {"flusher,control": office, "authz": {"SIDECAR_REDIS_URL": redis.url_of("quota-authz")}}
        async with Job(redis.url, database, tmp_path, parts=parts, **tls_settings(certificates)) as job:
            await do_the_whole_job(job, ["acme"])
            old = await redis.master()
            await old.says("1", "WAIT", 1, 5_000)
            assert await old.ask("ACL", "LOG") == [], "a command or key was denied"
            old.kill()
            new = await redis.fails_over(old)
            await lose_everything(job, "acme")
        denied = [entry for entry in await new.ask("ACL", "LOG") if b"auth" not in entry]
        assert denied == [], "a command or key was denied"


async def test_over_tls_and_with_the_users_that_are_described_a_master_is_found_and_found_again(
    servers_directory: Path, tmp_path: Path
) -> None:
    certificates = Certificates(servers_directory / f"tls-{tmp_path.name}")
    async with RedisSentinel(servers_directory / f"sentinel-{tmp_path.name}", certificates) as redis:
        files = tls_files(certificates)
        store = Store(redis.url, Keyspace(), Clock(), identity="t", timeout_ms=5_000, **files)
        try:
            await store.check()
            await store.put_catalogue(1, "of the first master")
            old = await redis.master()
            await old.says("1", "WAIT", 1, 5_000)
            old.kill()
            new = await redis.fails_over(old)

            async def goes_on() -> bool:
                try:
                    await store.put_catalogue(2, "of the second")
                except StoreUnavailable:
                    return False
                return True

            await eventually(goes_on, 20, new.log)
            assert await store.catalogue() == StoredCatalogue(2, "of the second", b"")
            denied = [entry for entry in await new.ask("ACL", "LOG") if b"auth" not in entry]
            assert denied == [], "a user that is described lacks a right"
        finally:
            await store.close()
