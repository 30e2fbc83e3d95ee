"""The whole job on a real cluster of three masters."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sidecar.clock import Clock
from sidecar.errors import StoreRefused, StoreUnavailable
from sidecar.store.client import Store
from sidecar.store.keys import Keyspace
from tests.servers.certificates import Certificates
from tests.servers.load_client import LoadClient, Tally, Traffic, until
from tests.servers.redis_cluster import RedisCluster
from tests.servers.redis_secured import tls_files
from tests.servers.whole_job import Job, do_the_whole_job, stay_exact

pytestmark = pytest.mark.timeout(180)
KEYS = Keyspace()


async def test_the_whole_job_runs_on_a_cluster(servers_directory: Path, database: str, tmp_path: Path) -> None:
    async with RedisCluster(servers_directory / f"cluster-{tmp_path.name}", replicas=False) as cluster:
        tenants = ["acme", "corp", "nova"]
        owners = {(await cluster.owner(KEYS.tenant(tenant))).port for tenant in tenants}
        assert len(owners) == 3, "each tenant on a node of its own"
        async with Job(cluster.url, database, tmp_path) as job:
            await do_the_whole_job(job, tenants)


async def test_one_node_that_evicts_is_enough_to_be_refused(servers_directory: Path, tmp_path: Path) -> None:
    async with RedisCluster(servers_directory / f"cluster-{tmp_path.name}", replicas=False) as cluster:
        store = Store(cluster.url, KEYS, Clock(), identity="t", timeout_ms=5_000)
        try:
            await store.check()
            node = cluster.nodes[2]
            await node.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
            with pytest.raises(StoreRefused, match=f"Redis at 127.0.0.1:{node.port} has maxmemory-policy allkeys-lru"):
                await store.check()
        finally:
            await store.close()


@pytest.mark.slow
async def test_a_node_killed_under_traffic_costs_no_count_and_no_unit_and_others_do_not_notice(
    servers_directory: Path, database: str, tmp_path: Path
) -> None:
    async with (
        RedisCluster(servers_directory / f"cluster-{tmp_path.name}") as cluster,
        Job(cluster.url, database, tmp_path) as job,
    ):
        await job.ready()
        await job.put(["elsewhere"], "large")
        await job.cli("flush")
        key, other = KEYS.tenant("acme"), KEYS.tenant("elsewhere")
        assert await cluster.owner(key) is not await cluster.owner(other)
        async with LoadClient(job.ports["AUTHZ"], "elsewhere") as client:
            assert (await client.decided()).allowed

        async def trouble(seen: Tally) -> None:
            async with Traffic(job.ports["AUTHZ"], ["elsewhere"], clients=1, rate_per_s=50) as traffic:
                old = await cluster.owner(key)
                old.kill()
                await cluster.fails_over(key, old)
            assert set(traffic.tally.reasons) == {"allowed"}, traffic.tally.reasons

        await stay_exact(job, "acme", "nova", trouble)


@pytest.mark.slow
async def test_a_slot_moved_under_traffic_costs_no_count_and_no_unit(
    servers_directory: Path, database: str, tmp_path: Path
) -> None:
    async with (
        RedisCluster(servers_directory / f"cluster-{tmp_path.name}", replicas=False) as cluster,
        Job(cluster.url, database, tmp_path) as job,
    ):

        async def trouble(seen: Tally) -> None:
            key = KEYS.tenant("acme")
            source = await cluster.owner(key)
            target = next(node for node in cluster.nodes if node is not source)
            await cluster.begin_move(key, target)
            # What scripts find by themselves goes first, so that they would take the limit for one never used.
            assert await cluster.move_keys(key, target, "limit:acme:") == 1
            await until(lambda: seen.reasons["store_unavailable"] > 0, 20)
            assert await cluster.move_keys(key, target) > 0
            await cluster.end_move(key, target)
            assert await cluster.owner(key) is target

        await stay_exact(job, "acme", "nova", trouble)


@pytest.mark.slow
async def test_over_tls_and_with_the_users_that_are_shipped_every_node_of_a_cluster_is_reached(
    servers_directory: Path, tmp_path: Path
) -> None:
    certificates = Certificates(servers_directory / f"tls-{tmp_path.name}")
    async with RedisCluster(servers_directory / f"cluster-{tmp_path.name}", certificates=certificates) as cluster:
        store = Store(cluster.url, KEYS, Clock(), identity="t", timeout_ms=5_000, **tls_files(certificates))
        try:
            await store.check()
            await asyncio.gather(*(store.retire(shard, "nobody") for shard in range(KEYS.shards)))
            assert await store.evicted_keys() == 0
        finally:
            await store.close()
        for node in cluster.nodes:
            assert await node.ask("ACL", "LOG") == [], "a user lacks a right"
        asked = [await node.says("cmdstat_evalsha", "INFO", "commandstats") for node in cluster.nodes]
        assert asked == [True] * 3 + [False] * 3, "some shard lies on each of the masters"


async def test_a_script_is_refused_while_keys_it_does_not_name_are_on_another_node(
    servers_directory: Path, tmp_path: Path
) -> None:
    """Scripts find limits and windows by themselves: one that is away would look like one that was never used."""
    async with RedisCluster(servers_directory / f"cluster-{tmp_path.name}", replicas=False) as cluster:
        store = Store(cluster.url, KEYS, Clock(), identity="t", timeout_ms=5_000)
        try:
            tenant = KEYS.tenant("acme")
            source = await cluster.owner(tenant)
            target = next(node for node in cluster.nodes if node is not source)
            await store.lookup("acme")
            await source.ask("HSET", tenant, "rev", 3, "doc", "plan")
            await source.ask("HSET", KEYS.limit("acme", "calls", 0), "spent", 7)
            assert (await store.lookup("acme")).revision == 3
            await cluster.begin_move(tenant, target)
            assert await cluster.move_keys(tenant, target, "limit:acme:") == 1
            with pytest.raises(StoreUnavailable, match=r"AskError|TryAgainError"):
                await store.lookup("acme")
            await cluster.move_keys(tenant, target)
            await cluster.end_move(tenant, target)
            assert (await store.lookup("acme")).revision == 3
        finally:
            await store.close()
