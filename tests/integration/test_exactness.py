"""Cases in which a cap was once over-admitted, or a count once lost; each keeps its cause from coming back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from sidecar.catalogue.model import ANONYMOUS
from sidecar.embedded import EmbeddedRedis
from sidecar.enforcement.core import RETIRE_AGAIN_S, Core
from sidecar.enforcement.decision import Identity
from sidecar.errors import StoreUnavailable
from sidecar.ledger import tenants
from sidecar.ledger.flusher import WINDOWS_PER_PASS
from sidecar.store.messages import SyncMessage, SyncReply, TenantReport
from tests.servers.installation import CATALOGUE, Installation, installation

WRITER = "00000000000000aa"
DEADLINE_S = 15


@pytest.fixture
async def place(
    redis_server: EmbeddedRedis, redis_prefix: str, database: str, tmp_path: Path
) -> AsyncIterator[Installation]:
    async with installation(redis_server.url, redis_prefix, database, tmp_path) as opened:
        yield opened


async def allowed(place: Installation, core: Core, tenant: str, times: int) -> int:
    return sum([(await place.ask(core, tenant)).allow for _ in range(times)])


async def learnt(place: Installation, core: Core, tenant: str, revision_above: int) -> None:
    """Wait until the core has a newer snapshot of the tenant."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            account = core.directory.account(tenant)
            if account is not None and account.rev > revision_above:
                return
            await asyncio.sleep(0.02)


async def test_old_windows_in_a_crowd_still_count_against_the_cap(place: Installation) -> None:
    """A pass that cannot carry everything at once owes the rebuild of the tenants it carried."""
    await place.catalogue(CATALOGUE.replace("period: month", "period: lifetime"))
    flusher = place.flusher()
    await place.tenant("t", "free")
    await flusher.flush()
    shard = place.keys.shard_of("t")
    old = place.clock.wall_s() // 3600 - 100
    crowd = [name for number in range(40 * WINDOWS_PER_PASS) if place.keys.shard_of(name := f"c{number}") == shard]
    parts = [TenantReport("t", 2**40, [("api_calls", 0, old, 90)], [])]
    parts += [TenantReport(name, 2**40, [("api_calls", 0, old, 1)], []) for name in crowd[: WINDOWS_PER_PASS + 50]]
    for first in range(0, len(parts), 200):
        message = SyncMessage(WRITER, 0, "", 0, parts[first : first + 200])
        await place.store.sync(shard, message, 60_000)
    await flusher.flush()
    await flusher.flush()
    core = await place.core()
    assert await allowed(place, core, "t", 40) == 10
    await core.abandon()


async def test_a_minute_does_not_start_again_when_its_limit_comes_back(place: Installation) -> None:
    text = CATALOGUE.replace("period: month", "period: minute") + "anonymous_plan: none\n"
    text = text.replace("plans:\n", "plans:\n  none:\n    price: 0\n    limits: {}\n")
    await place.catalogue(text)
    flusher = place.flusher()
    await place.tenant("t", "free")
    await flusher.flush()
    while place.clock.wall_s() % 60 > 40:  # the minute must not turn in the middle
        place.clock.advance(1_000)
    core = await place.core(changes_interval_ms=20)
    first = await allowed(place, core, "t", 60)
    for plan in ("none", "free"):
        account = core.directory.account("t")
        assert account is not None
        revision = account.rev
        async with place.ledger.transaction() as tx:
            await tenants.change_plan(tx, "t", plan, actor="test")
        await flusher.flush()
        await learnt(place, core, "t", revision)
        if plan == "none":
            await place.ask(core, "t")
    assert first + await allowed(place, core, "t", 100) <= 100 + 1
    await core.abandon()


async def test_a_shadow_child_does_not_dig_a_hole_into_its_parents_lease(place: Installation) -> None:
    await place.catalogue()
    flusher = place.flusher()
    await place.tenant("parent", "free")
    await place.tenant("child", "plus", parent="parent", shadow=True)
    await flusher.flush()
    core = await place.core()
    assert await allowed(place, core, "child", 130) == 130
    await core.flush()
    from sidecar.catalogue.period import bounds  # noqa: PLC0415 - next to its only use

    found = await place.store.limit("parent", "api_calls", bounds("month", place.clock.wall_s())[0])
    assert int(found["spent"]) == 130
    assert int(found.get("held", 0)) >= 0
    await core.abandon()


async def test_a_child_is_held_back_by_every_ancestor(place: Installation) -> None:
    await place.catalogue()
    flusher = place.flusher()
    await place.tenant("top", "free")
    await place.tenant("middle", "plus", parent="top")
    await place.tenant("leaf", "plus", parent="middle")
    await flusher.flush()
    core = await place.core()
    assert await allowed(place, core, "leaf", 140) == 100
    await core.abandon()


async def test_requests_without_identity_stay_on_their_plan(place: Installation) -> None:
    await place.catalogue(CATALOGUE.replace("default_plan: free\n", "default_plan: plus\nanonymous_plan: free\n"))
    flusher = place.flusher()
    await flusher.flush()
    core = await place.core()
    from sidecar.enforcement.decision import Identity  # noqa: PLC0415 - only here

    route = core.enforcer.policy.routes.match("GET", "", "/v1")
    decision = await core.enforcer.decide_waiting(Identity(), route, "")
    assert decision.allow
    await core.flush()
    await flusher.flush()
    async with place.ledger.transaction() as tx:
        assert (await tenants.show(tx, ANONYMOUS)).plan == "free"
    await core.abandon()


async def test_a_tenant_that_no_plan_fits_does_not_stop_its_shard(place: Installation) -> None:
    await place.catalogue(CATALOGUE.replace("default_plan: free\n", ""))
    flusher = place.flusher()
    shard = place.keys.shard_of("good")
    odd = next(name for number in range(1000) if place.keys.shard_of(name := f"odd{number}") == shard)
    await place.tenant(odd, "gone")
    await place.tenant("good", "free")
    await flusher.flush()
    assert (await place.store.lookup("good")).revision > 0


async def test_a_flush_waits_for_what_was_there_also_beside_other_passes(place: Installation) -> None:
    await place.catalogue()
    flusher = place.flusher()
    await flusher.flush()
    shard = place.keys.shard_of("t")
    names = [name for number in range(60_000) if place.keys.shard_of(name := f"n{number}") == shard][:1_500]
    hour = place.clock.wall_s() // 3600
    for first in range(0, len(names), 250):
        parts = [TenantReport(name, 2**40, [("api_calls", 0, hour, 1)], []) for name in names[first : first + 250]]
        await place.store.sync(shard, SyncMessage(WRITER, 0, "", 0, parts), 60_000)
    await flusher.flush()
    assert [await place.counted(name) for name in (names[0], names[700], names[-1])] == [1, 1, 1]


async def test_units_that_nobody_spends_reach_who_is_short_of_them(place: Installation) -> None:
    await place.catalogue()
    flusher = place.flusher()
    await flusher.flush()
    one, two = await place.core("one"), await place.core("two")
    assert await allowed(place, one, "t", 92) == 92
    async with asyncio.timeout(DEADLINE_S):
        count = 0
        while count < 8:
            decision = await place.ask(two, "t")
            count += decision.allow
            assert decision.allow or decision.reason == "limit_contended"
            await asyncio.sleep(0.01)
    await one.abandon()
    await two.abandon()


async def test_an_outage_budget_lasts_as_long_as_the_outage(
    fresh_redis: Callable[[], Awaitable[EmbeddedRedis]], redis_prefix: str, database: str, tmp_path: Path
) -> None:
    server = await fresh_redis()
    bounded = CATALOGUE.replace("cap: hard}", "cap: hard, on_outage: {bounded: 5}}").replace("100,", "100_000,")
    async with (
        installation(server.url, redis_prefix, database, tmp_path) as place,
        redis.asyncio.Redis.from_url(server.url) as direct,
    ):
        await place.catalogue(bounded)
        flusher = place.flusher(hold="full")
        await flusher.flush()
        core = await place.core()
        assert (await place.ask(core, "t")).allow
        await core.flush()
        await flusher.flush()
        await direct.flushall()
        await flusher.flush()
        await core.flush()
        await core.flush()
        # The lease in hand is spent first; then five units, however many syncs there are meanwhile.
        answers = [await place.ask(core, "t") for _ in range(500)]
        for _ in range(5):
            await core.flush()
            answers += [await place.ask(core, "t") for _ in range(20)]
        degraded = [answer for answer in answers if answer.allow and answer.quota_status == "degraded"]
        assert len(degraded) == 5
        await core.abandon()


async def test_a_worker_that_saw_an_empty_stream_hears_the_next_change(
    fresh_redis: Callable[[], Awaitable[EmbeddedRedis]], redis_prefix: str, database: str, tmp_path: Path
) -> None:
    server = await fresh_redis()
    async with (
        installation(server.url, redis_prefix, database, tmp_path) as place,
        redis.asyncio.Redis.from_url(server.url) as direct,
    ):
        await place.catalogue()
        flusher = place.flusher()
        await flusher.flush()
        core = await place.core(changes_interval_ms=20)
        await direct.flushall()
        await asyncio.sleep(0.1)  # the worker has looked at the empty stream
        await place.catalogue(CATALOGUE.replace("included: 100,", "included: 3,"))
        await flusher.flush()
        async with asyncio.timeout(DEADLINE_S):
            while core.enforcer.policy.revision != 2:
                await asyncio.sleep(0.02)
        await core.abandon()


async def test_headroom_is_known_before_the_first_answer(place: Installation) -> None:
    """A worker that never heard of a limit asks Redis before it says that something is left."""
    routes = "routes:\n  - name: peek\n    match: /peek\n    costs: {}\n    headroom: [api_calls]\n"
    await place.catalogue(CATALOGUE + routes)
    await place.tenant("t", "free")
    flusher = place.flusher()
    await flusher.flush()
    first = await place.core("first")
    assert await allowed(place, first, "t", 100) == 100
    await first.flush()
    second = await place.core("second")
    decision = await place.ask(second, "t", "/peek")
    assert (decision.allow, decision.reason) == (False, "limit_reached")


async def test_a_grace_that_is_over_is_over_for_a_new_worker_too(place: Installation) -> None:
    """A worker that never heard of a soft limit asks Redis before it decides by what has been used."""
    await place.catalogue(CATALOGUE.replace("cap: hard", "cap: soft, grace: 0s", 1))
    await place.tenant("t", "free")
    flusher = place.flusher()
    await flusher.flush()
    first = await place.core("first")
    assert await allowed(place, first, "t", 100) == 100
    assert not (await place.ask(first, "t")).allow
    await first.flush()
    second = await place.core("second")
    decision = await place.ask(second, "t")
    assert (decision.allow, decision.reason) == (False, "limit_reached")


async def test_nothing_is_granted_between_a_workers_last_report_and_its_retirement(place: Installation) -> None:
    """What it got then could be spent here and, freed by the retirement, elsewhere."""
    await place.catalogue()
    await place.flusher().flush()
    core = await place.core()
    assert (await place.ask(core, "t")).allow
    about_to, go_on = asyncio.Event(), asyncio.Event()
    retire = core._store.retire

    async def retired(shard: int, writer: str, **more: Any) -> int:
        about_to.set()
        await go_on.wait()
        return await retire(shard, writer, **more)

    core._store.retire = retired  # type: ignore[method-assign]
    stopping = asyncio.create_task(core.stop(1))
    await about_to.wait()
    decision = await place.ask(core, "t")
    assert (decision.allow, decision.status, decision.reason) == (False, 503, "store_unavailable")
    go_on.set()
    await stopping


async def test_a_redis_that_loses_its_state_before_a_worker_retires_is_told_of_its_windows_first(
    place: Installation, redis_server: EmbeddedRedis, redis_prefix: str
) -> None:
    """Or it would free the leases, and grant again, without what was spent of them."""
    await place.catalogue()
    await place.flusher().flush()
    core = await place.core()
    assert await allowed(place, core, "t", 7) == 7
    await core.flush()
    shard_of_t = place.keys.shard_of("t")
    retire, answers = core._store.retire, list[tuple[int, list[Any]]]()

    async with redis.asyncio.Redis.from_url(redis_server.url, protocol=2, decode_responses=True) as direct:

        async def retired(shard: int, writer: str, **more: Any) -> int:
            if shard != shard_of_t:
                return await retire(shard, writer, **more)
            if not answers:
                await direct.delete(*[key async for key in direct.scan_iter(f"{redis_prefix}:*")])
            known = [key async for key in direct.scan_iter(f"{redis_prefix}:*window:t:*")]
            answers.append((await retire(shard, writer, **more), [await direct.hget(key, writer) for key in known]))
            return answers[-1][0]

        core._store.retire = retired  # type: ignore[method-assign]
        await core.stop(1)
    assert answers == [(-1, []), (0, ["7"])]


async def test_a_shard_that_refuses_a_retirement_and_then_answers_nothing_is_asked_now_and_then(
    place: Installation,
) -> None:
    await place.catalogue()
    await place.flusher().flush()
    core = await place.core()
    await core.flush()
    asked = 0

    async def refused(_shard: int, _writer: str, **_more: Any) -> int:
        nonlocal asked
        asked += 1
        core._store.sync = unanswered  # type: ignore[assignment, method-assign]
        return -1

    async def unanswered(*_about: Any) -> SyncReply:
        raise StoreUnavailable

    core._store.retire = refused  # type: ignore[assignment, method-assign]
    await core.stop(0.5)
    assert 1 < asked <= 0.5 / RETIRE_AGAIN_S + 1


async def test_a_repeat_whose_api_key_was_forgotten_meanwhile_is_not_counted_again(place: Installation) -> None:
    """Both copies came as a worker went on that had hung, and between them keys were forgotten: changes were missed."""
    await place.catalogue()
    await place.flusher().flush()
    await place.store.put_key("ab", "t")
    core = await place.core()
    enforcer, identity = core.enforcer, Identity(key="ab")
    route = enforcer.policy.routes.match("GET", "", "/v1/things")
    first = await enforcer.decide_waiting(identity, route, "one")
    assert first.allow
    core.directory.keys.forget()
    assert enforcer.decide(identity, route, "one") is None
    assert await enforcer.decide_waiting(identity, route, "one") is first
    core.directory.keys.forget()
    assert await enforcer.decide_waiting(identity, route, "another") is not first
