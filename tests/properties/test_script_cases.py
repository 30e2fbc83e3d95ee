"""Cases of the scripts that random calls rarely meet, each of which once was wrong."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.clock import Clock
from sidecar.embedded import EmbeddedRedis
from sidecar.store.client import Store
from sidecar.store.keys import Keyspace, escaped, unescaped
from sidecar.store.messages import SYNC_REPLY
from tests.properties.models.server import ScriptServer
from tests.properties.one_shard import DAY_MS, DAY_S, HOUR, LIMIT, MONTHLY, RECLAIM_MS, Redis


def test_a_writer_that_came_back_before_it_was_taken_for_lost_keeps_its_lease(redis: Redis) -> None:
    """The flusher decides who is lost a transaction earlier; the writer may have a new lease by then."""
    redis.lease("w1", 0, 30)
    redis.wait(RECLAIM_MS)
    assert redis.collect()[8] == ["w1"]
    assert redis.lease("w1", 0, 20) == 20
    assert redis.retire("w1", lost=True) == 0
    assert redis.limit["held"] == "20"


def test_a_writer_taken_for_lost_gives_its_lease_back_and_is_counted(redis: Redis) -> None:
    redis.lease("w1", 0, 30)
    redis.wait(RECLAIM_MS)
    redis.retire("w1", lost=True)
    assert redis.limit["held"] == "0"
    assert redis.collect()[6] == [redis.generation, 30]


def test_lost_units_of_a_former_generation_are_told_until_the_next_one_is_forty_days_old(redis: Redis) -> None:
    redis.lease("w1", 0, 30)
    redis.wait(RECLAIM_MS)
    redis.retire("w1", lost=True)
    redis.now_ms += 50 * 86_400_000
    # Redis knows of fewer passes: it lost updates, and begins another generation.
    assert redis.collect(epoch=10)[6][1:] == [30]
    redis.publish(1, LIMIT)
    redis.call("open", [redis.space.writers(0)], redis.generation, 1, RECLAIM_MS, "full", [])
    today_s = redis.now_ms // 86_400_000 * 86_400
    redis.sync("w2", [], [["calls", "calls", today_s, (today_s + 86_400) * 1000, False, 0, 0, 20, 0]])
    redis.wait(RECLAIM_MS)
    redis.retire("w2", lost=True)
    for days in (0, 39):
        redis.now_ms += days * 86_400_000
        assert redis.collect()[6][1::2] == [30, 20]
    redis.now_ms += 2 * 86_400_000
    redis.collect()
    assert redis.collect()[6] == [redis.generation, 20]


def test_a_writer_is_not_retired_in_another_generation_than_was_told_of_its_windows(redis: Redis) -> None:
    redis.lease("w1", 0, 30)
    redis.collect()
    assert redis.retire("w1", lost=False, generation="before") == -1
    assert redis.limit["held"] == "30"
    assert redis.retire("w1", lost=False, generation=redis.generation) == 0
    assert redis.limit["held"] == "0"


@pytest.mark.parametrize(("hours_ahead", "units"), [(13, 24), (15, 4)])
def test_nothing_is_lent_of_a_day_that_was_long_over_when_the_state_was_lost(
    redis: Redis, hours_ahead: int, units: int
) -> None:
    """Redis' clock is ahead, past midnight: it brings back two hours, and of former days nobody says what was used."""
    redis.server.delete(redis.space.epoch(0))
    redis.now_ms += hours_ahead * 3_600_000
    redis.collect()
    redis.publish(1, LIMIT)
    assert redis.lease("w1", 4, 20) == 4
    redis.call("open", [redis.space.writers(0)], redis.generation, 1, RECLAIM_MS, "full", [])
    assert redis.lease("w1", 4, 20) == units


def test_the_lease_of_a_minute_outlives_its_writer(redis: Redis) -> None:
    """What was spent of it is in no journal."""
    redis.lease("w1", 0, 30, small=True)
    redis.retire("w1", lost=False)
    assert redis.limit["held"] == "30"


def test_a_lease_of_a_day_long_over_goes_back_where_the_day_began_with_a_month(redis: Redis) -> None:
    """Both have one hash; the writer speaks of the day for the last time, and what it held was nobody's for a month."""
    redis.lease("w1", 0, 30)
    redis.publish(2, MONTHLY)
    redis.server.set_ttl(redis.space.limit("acme", "calls", DAY_S), 10 * DAY_MS)
    redis.now_ms += 2 * DAY_MS
    day = ["calls", "calls", DAY_S, (DAY_S + 86_400) * 1000, False, 0, 0, 0, 0]
    redis.sync("w1", [], [day], revision=2)
    assert redis.limit["held"] == "0"


def test_a_month_is_not_forgotten_with_the_day_that_it_began_with(redis: Redis) -> None:
    """A cap of the month would begin anew when nobody asked for two days."""
    month = ["calls", "calls", DAY_S, (DAY_S + 31 * 86_400) * 1000, False, 0, 0, 30, 0]
    day = ["calls", "calls", DAY_S, (DAY_S + 86_400) * 1000, False, 0, 0, 0, 0]
    redis.publish(2, MONTHLY)
    redis.sync("w1", [["api", 0, HOUR, 5]], [month], revision=2)
    redis.sync("w2", [], [day], revision=2)
    _, ttl_ms = redis.server.state()[redis.space.limit("acme", "calls", DAY_S)]
    assert ttl_ms > 30 * DAY_MS
    assert redis.limit["spent"] == "5"


def test_an_expiry_that_is_wrong_is_set_right_within_the_hour_or_with_the_lease(redis: Redis) -> None:
    """A report of a lease that goes on leaves it alone, as it was set when the lease began."""
    key, end_ms = redis.space.limit("acme", "calls", DAY_S), (DAY_S + 86_400) * 1000

    def wrong_after(windows: list[Any], left: int) -> bool:
        redis.server.set_ttl(key, DAY_MS // 24)
        redis.sync("w1", windows, [["calls", "calls", DAY_S, end_ms, False, left, 0, 10, 0]])
        return bool(redis.server.state()[key][1] <= DAY_MS // 24)

    redis.lease("w1", 0, 10)
    assert wrong_after([], 5)
    assert not wrong_after([["api", 0, HOUR, 1]], 5)
    assert wrong_after([["api", 0, HOUR, 2]], 5)
    assert not wrong_after([], 0)


def test_a_tenant_that_nobody_knows_leaves_nothing_behind_when_it_asks_for_units(redis: Redis) -> None:
    """A flood of made-up names would leave a hash of each until the end of its period."""
    before = set(redis.server.state())
    asked = ["calls", "calls", DAY_S, (DAY_S + 86_400) * 1000, False, 0, 5, 30, 0]
    [part] = redis.sync("w1", [], [asked], revision=-1, tenant="made-up")[5]
    assert part == [-1, [[0, 0, 0, 0, False]]]
    assert not [key for key in set(redis.server.state()) - before if "made-up" in key]
    redis.publish(1, LIMIT, tenant="made-up")
    [part] = redis.sync("w1", [], [asked], tenant="made-up")[5]
    assert part[1][0][0] == 30


def test_a_window_that_grew_during_the_pass_stays_marked_where_it_first_changed(redis: Redis) -> None:
    redis.sync("w1", [["api", 0, HOUR, 5]], [])
    [window] = redis.collect()[9]
    redis.sync("w1", [["api", 0, HOUR, 6]], [])
    redis.sync("w2", [["api", 0, HOUR, 1]], [])
    assert redis.settle([window[:5]]) == window[4]
    assert redis.settle([window[:5]]) == window[4]
    [again] = redis.collect()[9]
    assert redis.settle([again[:5]]) == again[4]
    assert redis.collect()[9] == []


def test_a_call_reads_no_further_window_once_it_has_enough_counters(redis: Redis) -> None:
    """A hot window has a counter of every writer; a thousand of those would hold everybody up."""
    for hour in (HOUR - 2, HOUR - 1, HOUR):
        for writer in ("w1", "w2", "w3"):
            redis.sync(writer, [["api", 0, hour, 5]], [])
    assert [window[3] for window in redis.collect(counters=4)[9]] == [HOUR - 2, HOUR - 1]
    assert [window[3] for window in redis.collect(counters=1)[9]] == [HOUR - 2]
    assert redis.collect(counters=1)[10] == 3  # and says how many there are


def test_a_window_that_is_dirty_again_does_not_expire(redis: Redis) -> None:
    redis.sync("w1", [["api", 0, HOUR - 2, 5]], [])
    redis.settle([redis.collect()[9][0][:5]])
    key = redis.space.window("acme", "api", 0, HOUR - 2)
    assert redis.server.state()[key][1] is not None
    redis.sync("w1", [["api", 0, HOUR - 2, 6]], [])
    assert redis.server.state()[key][1] is None


def test_a_living_writers_windows_count_however_wrong_its_clock_is(redis: Redis) -> None:
    """Its leases shrink by what it spends; were that not counted, Redis would grant it again."""
    redis.sync("w1", [["api", 0, HOUR - 100, 7]], [])
    start = (HOUR - 100) // 24 * 86_400
    assert redis.kept(redis.space.limit("acme", "calls", start))["spent"] == "7"


def test_tenants_whose_ids_hold_colons_share_no_key(redis: Redis) -> None:
    redis.publish(1, LIMIT, tenant="acme:calls")
    redis.sync("w1", [["api", 0, HOUR, 5]], [])
    redis.sync("w1", [["api", 0, HOUR, 7]], [], tenant="acme:calls")
    assert redis.space.limit("acme", "calls:x", 0) != redis.space.limit("acme:calls", "x", 0)
    found = {(window[0], window[1], window[5][1]) for window in redis.collect()[9]}
    assert found == {("acme", "api", 5), ("acme:calls", "api", 7)}


@pytest.mark.parametrize("tenant", ["a", "a:b", "a%3Ab", "100%", "%", ":", "ü:%25"])
def test_a_tenants_name_in_a_key_can_be_read_back(tenant: str) -> None:
    assert ":" not in escaped(tenant)
    assert unescaped(escaped(tenant)) == tenant


def test_a_ledger_restored_from_a_backup_starts_no_new_generation(redis: Redis) -> None:
    for epoch in (3, 4, 5):
        redis.collect(epoch)
    redis.settle([])
    redis.call("settle", [redis.space.dirty(0)], redis.generation, 6, [])
    before = redis.generation
    assert redis.collect(2)[5] == 6  # the flusher sees that Redis is ahead, and raises the ledger's epoch beyond it
    redis.call("settle", [redis.space.dirty(0)], redis.generation, 7, [])
    redis.collect(7)
    assert redis.generation == before


@pytest.mark.parametrize("length", [0, 31, 32, 255, 256, 65_535, 65_536])
def test_whoever_reports_by_an_old_snapshot_is_sent_the_newer_one(redis: Redis, length: int) -> None:
    redis.publish(3, document="é" + "x" * length)
    [part] = SYNC_REPLY.decode(redis.send("w1", 1, [["acme", 2, [], []]])).parts
    assert (part.revision, part.leases, part.document.decode()) == (3, [], "é" + "x" * length)
    [part] = SYNC_REPLY.decode(redis.send("w1", 2, [["acme", 3, [], []]])).parts
    assert (part.revision, part.document) == (3, b"")


def test_no_more_snapshots_are_sent_than_an_answer_should_hold(redis: Redis) -> None:
    tenants = [f"t{number}" for number in range(25)]
    for tenant in tenants:
        redis.publish(2, tenant=tenant)
    parts = SYNC_REPLY.decode(redis.send("w1", 1, [[tenant, 1, [], []] for tenant in tenants])).parts
    assert [part.document for part in parts] == [b"document"] * 20 + [b""] * 5


def test_whoever_reports_the_windows_of_another_is_sent_no_snapshots(redis: Redis) -> None:
    redis.publish(2)
    [part] = SYNC_REPLY.decode(redis.send("w1", 0, [["acme", 1, [], []]])).parts
    assert (part.revision, part.document) == (2, b"")


async def test_every_window_is_marked_again_after_the_ledger_went_back(
    redis_server: EmbeddedRedis, redis_prefix: str
) -> None:
    """A mark that stands keeps its version, or the watermark would pass it."""
    server = ScriptServer(redis_server.url, redis_prefix)
    one = Redis(server)
    one.publish(1, LIMIT, tenant="org:acme")
    one.sync("w1", [["api", 0, HOUR, 5]], [], tenant="org:acme")
    one.settle([one.collect()[9][0][:5]])
    one.sync("w1", [["api", 0, HOUR, 1]], [])
    dirty = one.kept(one.space.dirty(0))
    store = Store(redis_server.url, Keyspace(redis_prefix, 1), Clock(), identity="test", timeout_ms=5000)
    assert await store.mark_all_dirty(0) == 2
    await store.close()
    marked = one.kept(one.space.dirty(0))
    assert set(marked) == {f"acme\0api:0:{HOUR}", f"org:acme\0api:0:{HOUR}"}
    assert dirty.items() <= marked.items()
    assert one.server.state()[one.space.window("org:acme", "api", 0, HOUR)][1] is None  # until the ledger has it
    server.close()
