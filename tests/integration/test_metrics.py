"""Every metric family moves when what it counts happens, in a whole installation; billing has tests of its own."""

from __future__ import annotations

import asyncio
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import redis.asyncio
from prometheus_client.parser import text_string_to_metric_families

from sidecar.embedded import EmbeddedRedis
from sidecar.ledger.flusher import Flusher
from sidecar.telemetry import FAMILIES
from tests.servers.accounts import create_key, put_tenant
from tests.servers.installation import installation
from tests.servers.load_client import LoadClient, Traffic, until
from tests.servers.sidecar_dev import SidecarDev

pytestmark = [pytest.mark.timeout(180), pytest.mark.slow]

CATALOGUE = Path(__file__).parent.parent / "faults" / "limits.yaml"
ENVIRONMENT = {"SIDECAR_LEASE_TTL_MS": "2000", "SIDECAR_RECLAIM_AFTER_MS": "8000"}

# What happens -> families (histograms by their count) and labels that must have moved by then.
AFTER: dict[str, tuple[tuple[str, str], ...]] = {
    "traffic": (
        ("sidecar_decisions_total", "allowed"),
        ("sidecar_decisions_total", "limit_reached"),
        ("sidecar_decision_seconds_count", ""),
        ("sidecar_connections", ""),
        ("sidecar_waits_total", "answered"),
        ("sidecar_leases_held", ""),
        ("sidecar_lease_units", ""),
        ("sidecar_syncs_total", "good"),
        ("sidecar_sync_seconds_count", ""),
        ("sidecar_sync_age_seconds", ""),
        ("sidecar_store_calls_total", "sync"),
        ("sidecar_journal_cells", ""),
        ("sidecar_journal_bytes", ""),
        ("sidecar_journal_writable", ""),
        ("sidecar_journal_lag_windows", ""),
        ("sidecar_snapshot_hits_total", ""),
        ("sidecar_snapshot_misses_total", ""),
        ("sidecar_snapshots_cached", ""),
        ("sidecar_key_hits_total", ""),
        ("sidecar_key_misses_total", ""),
        ("sidecar_keys_cached", ""),
        ("sidecar_catalogue_revision", ""),
        ("sidecar_catalogue_reload_ok", ""),
        ("sidecar_flush_passes_total", "good"),
        ("sidecar_flush_seconds_count", ""),
        ("sidecar_flush_rows_total", ""),
        ("sidecar_flush_lag_seconds", ""),
        ("sidecar_processes", "authz"),
    ),
    "nonsense": (("sidecar_requests_malformed_total", ""), ("sidecar_requests_refused_total", "path")),
    "killed worker": (("sidecar_restarts_total", "authz"), ("sidecar_journals_adopted_total", "")),
    "hanging Redis": (
        ("sidecar_syncs_total", "failed"),
        ("sidecar_store_errors_total", "sync"),
        ("sidecar_breaker_open", ""),
        ("sidecar_breaker_opened_total", ""),
        ("sidecar_degraded_limits", ""),
    ),
    "wiped Redis": (("sidecar_generation_changes_total", ""), ("sidecar_restores_total", "")),
}
ELSEWHERE = {
    "sidecar_connections_refused_total": "test_listener_bounds.py",
    "sidecar_decisions_failed_total": "test_dialects.py",
    "sidecar_flush_folded_total": "test_folding.py",
    "sidecar_flush_backlog_windows": "a moment that no scrape is sure to see",
    "sidecar_lease_units_lost_total": "below",
    "sidecar_loop_failures_total": "test_core.py",
    "sidecar_requests_waiting": "a moment that no scrape is sure to see",
    "sidecar_store_evicted_keys": "test_serve.py",
    "sidecar_strangers_refused_total": "test_floods.py",
}
BILLING = ("sidecar_webhook", "sidecar_stripe_")


@pytest.fixture(scope="module")
def dev(servers_directory: Path) -> Iterator[SidecarDev]:
    with SidecarDev(servers_directory / "metrics", CATALOGUE, env=ENVIRONMENT) as running:
        yield running


def scraped(dev: SidecarDev) -> dict[tuple[str, str], float]:
    """Each sample by name and by each of its label values, added up; "" is all of them."""
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(dev.metrics()):
        for sample in family.samples:
            for label in {"", *sample.labels.values()}:
                found[sample.name, label] = found.get((sample.name, label), 0) + sample.value
    return found


async def moved(dev: SidecarDev, event: str) -> None:
    missing: list[tuple[str, str]] = []

    def all_moved() -> bool:
        now = scraped(dev)
        missing[:] = [wanted for wanted in AFTER[event] if not now.get(wanted)]
        return not missing

    try:
        await until(all_moved, 20)
    except AssertionError:
        pytest.fail(f"{event} did not move {missing}")


def test_every_family_is_moved_by_something() -> None:
    tried = {name.removesuffix("_count") for event in AFTER.values() for name, _ in event}
    assert not tried & set(ELSEWHERE)
    assert tried | set(ELSEWHERE) == {name for name in FAMILIES if not name.startswith(BILLING)}


async def test_what_happens_is_counted(dev: SidecarDev) -> None:
    spent, large, open_ = put_tenant(dev, "small"), put_tenant(dev, "large"), put_tenant(dev, "open")
    closed = put_tenant(dev, "closed")
    key = create_key(dev, large)
    async with LoadClient(dev.authz_port, spent) as client:
        assert [(await client.decided()).status for _ in range(22)][-1] == 429
    async with Traffic(dev.authz_port, [large, open_, closed], clients=4, rate_per_s=100) as traffic:
        await traffic.reached(100)
        # By now the key's own announcement, which has it looked up again, is over.
        async with LoadClient(dev.authz_port, headers={"x-api-key": key}) as client:
            assert [(await client.decided()).status for _ in range(3)] == [200] * 3
        await moved(dev, "traffic")

        with socket.create_connection(("127.0.0.1", dev.authz_port)) as client_socket:
            client_socket.sendall(b"NONSENSE\r\n\r\n")
            client_socket.recv(4_096)
        with pytest.raises(urllib.error.HTTPError):
            await asyncio.to_thread(urllib.request.urlopen, f"{dev.at.authz}/nothing", timeout=5)
        await moved(dev, "nonsense")

        dev.signal_authz(signal.SIGKILL)
        await moved(dev, "killed worker")
        await traffic.reached(50)

        dev.signal_redis(signal.SIGSTOP)
        try:
            await moved(dev, "hanging Redis")
        finally:
            dev.signal_redis(signal.SIGCONT)

        with redis.Redis.from_url(dev.at.redis) as store:
            store.flushall()
        await moved(dev, "wiped Redis")


async def test_a_lease_that_is_lost_with_its_worker_is_counted_once_for_all_flushers(
    redis_server: EmbeddedRedis, redis_prefix: str, database: str, tmp_path: Path
) -> None:
    async with installation(redis_server.url, redis_prefix, database, tmp_path) as inside:
        await inside.catalogue()
        flusher = inside.flusher(reclaim_after_ms=1_000)
        await flusher.flush()
        core = await inside.core(lease_ttl_ms=500, reclaim_after_ms=1_000)
        assert (await inside.ask(core, "acme")).allow
        await core.flush()
        await core.abandon()
        for path in (tmp_path / "one" / "journals").iterdir():
            path.unlink()
        await asyncio.sleep(1.2)
        await flusher.flush()
        await flusher.flush()
        lost = await units_lost(flusher)
        assert lost > 0
        shard = inside.keys.shard_of("acme")
        async with redis.asyncio.Redis.from_url(redis_server.url) as client:
            assert lost == int(await client.hget(inside.keys.epoch(shard), "lost") or 0)
            another = inside.flusher(reclaim_after_ms=1_000)
            assert another._counters.reading(0)["sidecar_lease_units_lost_total"] == {}
            await another.flush()
            assert await units_lost(another) == lost
            # An older copy of this Redis, which has told of some of them before, and then loses more.
            former = await client.hget(inside.keys.epoch(shard), "gen")
            await client.hset(inside.keys.reclaimed(shard), former, lost - 1)
            await client.hset(inside.keys.epoch(shard), mapping={"lost": lost - 1, "replid": "another"})
            await flusher.flush()
            assert await units_lost(flusher) == lost
            generation = await client.hget(inside.keys.epoch(shard), "gen")
            assert generation is not None
            assert generation != former
            await client.hincrby(inside.keys.reclaimed(shard), generation, 5)
            await another.flush()
            await flusher.flush()
        assert await units_lost(flusher) == await units_lost(another) == lost + 5


async def units_lost(flusher: Flusher) -> int:
    """What a flusher tells, once it has asked the ledger."""
    await flusher.project()
    [lost] = flusher._counters.reading(0)["sidecar_lease_units_lost_total"][()]
    return lost
