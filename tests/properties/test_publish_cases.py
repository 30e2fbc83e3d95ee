"""Cases of what the flusher tells Redis (publish, merge, lookup), each of which once was wrong."""

from __future__ import annotations

from typing import Any

from sidecar.store.client import OUTDATED
from tests.properties.one_shard import DAY_MS, DAY_S, HOUR, LIMIT, MONTHLY, Redis


def test_a_limit_of_another_metric_starts_from_what_that_metric_has_used(redis: Redis) -> None:
    redis.sync("w1", [["api", 0, HOUR, 60]], [])
    redis.publish(2, ["calls", "tokens", "day", False, 100, 100])
    report = ["calls", "calls", DAY_S, (DAY_S + 86_400) * 1000, False, 0, 0, 50, 0]
    [[units, spent, *_]] = redis.sync("w1", [], [report], revision=2)[5][0][1]
    assert (units, spent) == (50, 0)


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


def test_a_snapshot_that_comes_late_takes_nothing_back_of_old_windows(redis: Redis) -> None:
    """The ledger's totals in it are from before the window: its units were granted to others meanwhile."""
    redis.collect()
    message = ["acme", 1, [LIMIT], redis.generation, redis.direct, [], redis.version, redis.number]
    redis.sync("w1", [["api", 0, HOUR - 60, 7]], [])
    assert redis.call("publish", [redis.space.tenant("acme")], [message], "document") == [OUTDATED]
    key = redis.space.limit("acme", "calls", (HOUR - 60) // 24 * 86_400)
    assert redis.kept(key)["spent"] == "7"
    redis.collect()
    redis.publish(1, LIMIT)


def test_a_snapshot_of_an_earlier_pass_takes_nothing_back_of_what_another_server_counted(redis: Redis) -> None:
    """The ledger got an old window from another server meanwhile; nothing here says that anything has changed."""
    start = DAY_S  # 2026-03-01 begins a month, too
    key = redis.space.limit("acme", "calls", start)

    def told(units: int, number: int) -> Any:
        message = ["acme", 1, [MONTHLY], redis.generation, redis.direct, ["calls", start, units, 10**13], 0, number]
        [standing] = redis.call("publish", [redis.space.tenant("acme")], [message], "document")
        return standing, redis.kept(key)["spent"]

    earlier = redis.number
    assert told(40, earlier) == (1, "40")
    redis.collect()
    assert redis.number > earlier
    assert told(41, redis.number) == (1, "41")
    assert told(40, earlier) == (OUTDATED, "41")
    assert told(42, redis.number) == (1, "42")


def test_passes_are_numbered_on_where_the_clock_went_back_or_the_generation_was_lost(redis: Redis) -> None:
    redis.collect()
    before = redis.number
    redis.now_ms -= 3_600_000
    redis.collect()
    assert redis.number == before + 1
    redis.now_ms += 3_600_000 + 1_000
    redis.server.delete(redis.space.epoch(0))
    redis.collect()
    assert redis.number > before + 1


def test_a_snapshot_that_is_outdated_holds_up_none_beside_it(redis: Redis) -> None:
    redis.collect()
    fixed = [redis.generation, redis.direct, [], redis.version, redis.number]
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
    assert redis.call("publish", [redis.space.tenant("acme")], [[*message, older, 9, redis.number]], "document") == [2]
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
