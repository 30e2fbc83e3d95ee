"""Cases of the scripts that random calls rarely meet, each of which once was wrong."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from sidecar.clock import Clock
from sidecar.embedded import EmbeddedRedis
from sidecar.store.client import OUTDATED, Store
from sidecar.store.keys import Keyspace, escaped, unescaped
from sidecar.store.messages import SYNC_REPLY
from tests.properties.models.server import ScriptServer, unpacked

NOW_MS = 1_772_366_400_000  # 2026-03-01 12:00:00 UTC
HOUR = NOW_MS // 3_600_000
DAY_S = NOW_MS // 86_400_000 * 86_400
RECLAIM_MS = 60_000
DAY_MS = 86_400_000
LIMIT = ["calls", "api", "day", False, 100, 100]
MONTHLY = ["calls", "api", "month", False, 100, 100]


class Redis:
    """One shard with tenant "acme", granting."""

    def __init__(self, server: ScriptServer) -> None:
        self.server = server
        self.now_ms = NOW_MS
        self.sequences: dict[str, int] = {}
        self.generation = ""
        self.direct = 0
        self.version = 0
        self.collect()
        self.publish(1, LIMIT)
        self.call("open", [self.space.writers(0)], self.generation, 1, RECLAIM_MS, "full", [])

    @property
    def space(self) -> Keyspace:
        return self.server.space

    def call(self, script: str, keys: list[str], *arguments: object) -> Any:
        self.server.set_clock(self.now_ms, "a")
        return self.server.call(script, 0, secrets.token_hex(4), keys, *arguments)

    def wait(self, ms: int) -> None:
        """Let time go by as it does with calls coming in: without jumps."""
        for _ in range(-(-ms // 5_000)):
            self.now_ms += 5_000
            self.call("find_key", [self.space.api_key("none")])

    def publish(self, revision: int, *limits: list[Any], tenant: str = "acme", document: str = "document") -> None:
        message = [tenant, revision, list(limits), self.generation, self.direct, [], self.version]
        assert self.call("publish", [self.space.tenant(tenant)], [message], document)[0] >= 0

    def sync(
        self, writer: str, windows: list[Any], leases: list[Any], *, revision: int = 1, tenant: str = "acme"
    ) -> Any:
        self.sequences[writer] = self.sequences.get(writer, 0) + 1
        return unpacked(self.send(writer, self.sequences[writer], [[tenant, revision, windows, leases]]))

    def send(self, writer: str, sequence: int, parts: list[Any]) -> bytes:
        """A sync message; the answer as it is on the wire."""
        keys = [self.space.writers(0), self.space.writer(0, writer), self.space.held(0, writer), self.space.dirty(0)]
        keys.append(self.space.called(0))
        answer: bytes = self.call("sync", keys, RECLAIM_MS, [writer, sequence, self.generation, 0, parts])
        return answer

    def lease(self, writer: str, left: int, want: int, *, small: bool = False) -> int:
        """Report one lease of the tenant's limit, and ask for more; returns what Redis set aside."""
        end_ms = (NOW_MS // 60_000 + 1) * 60_000 if small else (DAY_S + 86_400) * 1000
        report = ["calls", "calls", DAY_S, end_ms, small, left, 0, want, 0]
        return int(self.sync(writer, [], [report])[5][0][1][0][0])

    def collect(self, epoch: int = 0, most: int = 100, counters: int = 100) -> Any:
        keys = [self.space.dirty(0), self.space.writers(0)]
        collected = unpacked(self.call("collect", keys, epoch, most, RECLAIM_MS, counters))
        self.generation, self.direct, self.version = collected[0], collected[3], collected[7]
        return collected

    def settle(self, windows: list[Any]) -> Any:
        return self.call("settle", [self.space.dirty(0)], self.generation, 1, windows)

    def retire(self, writer: str, *, lost: bool, generation: str = "") -> Any:
        keys = [self.space.writers(0), self.space.writer(0, writer), self.space.held(0, writer)]
        return self.call("retire", keys, writer, 500, RECLAIM_MS if lost else 0, generation)

    def kept(self, key: str) -> Any:
        return self.server.state()[key][0]

    @property
    def limit(self) -> Any:
        return self.kept(self.space.limit("acme", "calls", DAY_S))


@pytest.fixture
def redis(redis_server: EmbeddedRedis) -> Iterator[Redis]:
    server = ScriptServer(redis_server.url, f"t{secrets.token_hex(6)}")
    yield Redis(server)
    server.close()


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
    assert redis.collect()[6] == 30


def test_a_writer_is_not_retired_in_another_generation_than_was_told_of_its_windows(redis: Redis) -> None:
    redis.lease("w1", 0, 30)
    redis.collect()
    assert redis.retire("w1", lost=False, generation="before") == -1
    assert redis.limit["held"] == "30"
    assert redis.retire("w1", lost=False, generation=redis.generation) == 0
    assert redis.limit["held"] == "0"


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


def test_a_limit_of_another_metric_starts_from_what_that_metric_has_used(redis: Redis) -> None:
    redis.sync("w1", [["api", 0, HOUR, 60]], [])
    redis.publish(2, ["calls", "tokens", "day", False, 100, 100])
    report = ["calls", "calls", DAY_S, (DAY_S + 86_400) * 1000, False, 0, 0, 50, 0]
    [[units, spent, *_]] = redis.sync("w1", [], [report], revision=2)[5][0][1]
    assert (units, spent) == (50, 0)


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


def test_an_introduced_tenant_in_use_is_not_forgotten_after_a_day(redis: Redis) -> None:
    key = redis.space.tenant("new")
    limits = [LIMIT]
    assert redis.call("lookup", [key], 1, "default", limits)[1:] == [0, b"default"]
    redis.now_ms += 3_600_000
    redis.server.set_ttl(key, 1_000)
    redis.sync("w1", [["api", 0, HOUR, 1]], [], revision=0, tenant="new")
    assert redis.server.state()[key][1] > 80_000_000
    redis.publish(1, LIMIT, tenant="new")
    assert redis.server.state()[key][1] is None
    assert "introduced" not in redis.kept(key)


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


def test_a_snapshot_that_comes_late_takes_nothing_back_of_old_windows(redis: Redis) -> None:
    """The ledger's totals in it are from before the window: its units were granted to others meanwhile."""
    redis.collect()
    message = ["acme", 1, [LIMIT], redis.generation, redis.direct, [], redis.version]
    redis.sync("w1", [["api", 0, HOUR - 60, 7]], [])
    assert redis.call("publish", [redis.space.tenant("acme")], [message], "document") == [OUTDATED]
    key = redis.space.limit("acme", "calls", (HOUR - 60) // 24 * 86_400)
    assert redis.kept(key)["spent"] == "7"
    redis.collect()
    redis.publish(1, LIMIT)


def test_a_snapshot_that_is_outdated_holds_up_none_beside_it(redis: Redis) -> None:
    redis.collect()
    fixed = [redis.generation, redis.direct, [], redis.version]
    redis.sync("w1", [["api", 0, HOUR - 60, 7]], [])
    keys = [redis.space.tenant(name) for name in ("one", "acme", "two")]
    messages = [[name, revision, [LIMIT], *fixed] for name, revision in (("one", 3), ("acme", 4), ("two", 5))]
    assert redis.call("publish", keys, messages, "first", "second", "third") == [3, OUTDATED, 5]
    assert [redis.kept(key)["doc"] for key in keys] == ["first", "document", "third"]


def test_a_snapshot_older_than_the_one_in_force_changes_nothing(redis: Redis) -> None:
    """It knows nothing of the limits that are new, and would rebuild them from too little."""
    redis.sync("w1", [["api", 0, HOUR, 5]], [])
    message = ["acme", 2, [LIMIT, ["more", "api", "month", False, 9, 9]], redis.generation, redis.direct]
    start = DAY_S  # 2026-03-01 begins a month, too
    older = ["more", start, 40, 10**13]
    assert redis.call("publish", [redis.space.tenant("acme")], [[*message, older, 9]], "document") == [2]
    redis.publish(1, LIMIT)
    assert redis.kept(redis.space.limit("acme", "more", start))["spent"] == "45"


def test_what_is_brought_to_a_data_set_that_grants_counts_at_once_and_once(redis: Redis) -> None:
    """Else its units could be granted until the snapshot that follows, which may never come."""
    redis.sync("w1", [["api", 0, HOUR, 5]], [])
    row = ["acme", "api", 0, HOUR, "w2", 95]
    assert redis.call("merge", [], redis.generation, [row]) == 1
    assert redis.limit["spent"] == "100"
    assert redis.lease("w3", 0, 20) == 0
    assert redis.call("merge", [], redis.generation, [row]) == 1
    redis.sync("w2", [["api", 0, HOUR, 95]], [])
    assert redis.limit["spent"] == "100"
    redis.publish(1, LIMIT)
    assert redis.limit["spent"] == "100"


def test_an_hour_that_begins_with_a_former_day_has_only_what_was_counted_in_it(redis: Redis) -> None:
    """A writer's clock may be ahead, so that a tenant's day has counts before its first hour begins by Redis' clock."""
    start = DAY_S + 86_400
    midnight, key = start // 3_600, redis.space.limit("acme", "calls", start)
    redis.sync("w1", [["api", 0, midnight + 1, 3]], [])
    assert redis.kept(key)["spent"] == "3"
    redis.publish(2, ["calls", "api", "hour", False, 100, 100])
    assert redis.kept(key)["spent"] == "0"
    redis.sync("w1", [["api", 0, midnight, 8], ["api", 0, midnight + 1, 4]], [], revision=2)
    assert redis.kept(key)["spent"] == "8"
    redis.publish(3, LIMIT)
    assert redis.kept(key)["spent"] == "12"


def test_keys_of_former_hours_go_with_the_next_day_when_the_limit_is_of_billing_periods(redis: Redis) -> None:
    """Each hour of the last two days has one, for each user, and a billing period may begin with any of them."""
    redis.publish(2, ["calls", "api", "hour", False, 100, 100])
    began = (HOUR - 2) * 3_600
    redis.sync("w1", [["api", began, HOUR - 1, 3], ["api", began, HOUR - 2, 2]], [], revision=2)
    redis.publish(3, ["calls", "api", "billing", False, 100, 100])
    state = redis.server.state()
    former, current = (state[redis.space.limit("acme", "calls", start)] for start in (began + 3_600, began))
    assert (former[0]["spent"], current[0]["spent"]) == ("0", "5")
    assert former[1] <= DAY_MS < 400 * DAY_MS - 60_000 < current[1]


def test_what_is_brought_too_late_is_left_to_the_total_of_the_ledger(redis: Redis) -> None:
    """The row was read while its hour was recent; the total of a snapshot that came before it has it."""
    redis.publish(1, ["calls", "api", "lifetime", False, 100, 100])
    redis.sync("w1", [["api", 0, HOUR, 5]], [])
    row = ["acme", "api", 0, redis.direct - 1, "w2", 40]
    assert redis.call("merge", [], redis.generation, [row]) == 1
    assert redis.kept(redis.space.limit("acme", "calls", 0))["spent"] == "5"
    assert redis.call("merge", [], redis.generation, [[*row[:3], redis.direct, *row[4:]]]) == 1
    assert redis.kept(redis.space.limit("acme", "calls", 0))["spent"] == "45"


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
