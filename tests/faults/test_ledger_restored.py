"""Postgres restored from a backup while Redis and Stripe went on: found out by the epoch, and billed once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from pathlib import Path

import pytest

from sidecar.embedded import EmbeddedRedis
from sidecar.enforcement.core import Core
from sidecar.ledger.flusher import Flusher
from tests.servers.forwarding import HOUR_S, Forwarding
from tests.servers.installation import Installation, installation

NAMES = ["a", "b", "c"]


@pytest.fixture
async def site(
    redis_server: EmbeddedRedis, redis_prefix: str, database: str, place: Forwarding, tmp_path: Path
) -> AsyncIterator[Installation]:
    """Redis and workers on the ledger of ``place``."""
    assert place.now_s
    async with installation(redis_server.url, redis_prefix, database, tmp_path) as opened:
        yield opened


async def use(site: Installation, core: Core, flusher: Flusher, times: int, names: Sequence[str] = NAMES) -> None:
    """Have tenants' requests allowed, and carried to the ledger."""
    for name in names:
        for _ in range(times):
            assert (await site.ask(core, name)).allow
    await core.flush()
    await flusher.flush()


async def test_a_ledger_an_hour_old_is_found_out_and_stripe_is_asked_first(
    place: Forwarding, site: Installation
) -> None:
    await place.tenants(NAMES)
    flusher = site.flusher()
    await flusher.flush()
    core = await site.core()
    forwarder = place.forwarder(vouch=flusher.vouches)
    await use(site, core, flusher, 7)
    await forwarder.flush()
    await place.back_up()
    await use(site, core, flusher, 20)
    await forwarder.flush()
    await use(site, core, flusher, 3)
    everything = {(name, "api_calls"): Decimal(27) for name in NAMES}
    assert place.at_stripe() == everything, "three more each are in the ledger and not at Stripe"

    await place.restore()
    before = await place.sql("select ledger_id from installation")
    # All processes that see Postgres and Stripe start anew; Redis and the worker go on.
    flusher = site.flusher()
    forwarder = place.forwarder(vouch=flusher.vouches)
    await forwarder.flush(timeout_s=0.3)
    assert place.at_stripe() == everything, "nobody vouches for this ledger yet"
    await use(site, core, flusher, 5)
    assert await place.sql("select ledger_id from installation") != before
    assert await place.in_ledger() == {(name, "api_calls"): Decimal(35) for name in NAMES}
    await forwarder.flush()
    assert place.at_stripe() == everything, "first Stripe's sums are read, when they are sure to be complete"
    await place.advance(HOUR_S)
    for _ in range(3):
        await forwarder.flush()
    await place.agree()
    assert sum(row["amount"] for row in await place.rows() if row["adopted"]) == 20 * len(NAMES)
    assert await place.states() == {"delivered": len(await place.rows())}
    assert place.refusals() == []


async def test_what_a_quiet_tenant_was_billed_is_not_billed_again(place: Forwarding, site: Installation) -> None:
    """Its shard has not changed since the backup, so that nothing but another one's epoch tells of the restore."""
    quiet, busy = NAMES[:2]
    assert site.keys.shard_of(quiet) != site.keys.shard_of(busy)
    await place.tenants(NAMES)
    flusher = site.flusher()
    await flusher.flush()
    core = await site.core()
    await use(site, core, flusher, 7, [quiet, busy])
    await place.back_up()
    forwarder = place.forwarder(vouch=flusher.vouches)
    await forwarder.flush()
    await use(site, core, flusher, 4, [busy])
    assert place.at_stripe() == {(quiet, "api_calls"): 7, (busy, "api_calls"): 7}

    await place.restore()
    flusher = site.flusher()
    forwarder = place.forwarder(vouch=flusher.vouches)
    for _ in range(2):
        await flusher.flush()
        await forwarder.flush()
        await place.advance(HOUR_S)
    await forwarder.flush()
    assert place.at_stripe() == {(quiet, "api_calls"): 7, (busy, "api_calls"): 11}
    await place.agree()
    assert not await place.sql("select from shards where doubted")
