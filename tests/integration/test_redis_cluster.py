"""The whole job on a real cluster of three masters."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.clock import Clock
from sidecar.errors import StoreRefused
from sidecar.store.client import Store
from sidecar.store.keys import Keyspace
from tests.servers.redis_cluster import RedisCluster
from tests.servers.whole_job import Job, do_the_whole_job

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
