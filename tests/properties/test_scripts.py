"""Every Lua script against a Python model: any sequence of calls gives the same answers and leaves the same keys."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sidecar.catalogue.period import bounds
from sidecar.embedded import EmbeddedRedis
from tests.properties.models import passes
from tests.properties.models.keys import differences
from tests.properties.models.server import ScriptServer, unpacked
from tests.properties.models.shard import HOUR_MS, Shard, limits_of

START_MS = 1_772_323_000_000  # 55 minutes before March begins in 2026
RECLAIM_MS = 60_000
TENANTS = ("acme", "acme:calls", "50%")
WRITERS = ("w1", "w2", "w3")
# Limits of one tenant in three revisions: (name, metric, period, scoped, included, stop), -1 for none.
REVISIONS: dict[int, list[list[Any]]] = {
    0: [["calls", "api", "month", False, 10, -1]],
    1: [
        ["calls", "api", "month", False, 60, 60],
        ["daily", "api", "day", False, 20, -1],
        ["users", "api", "hour", True, -1, 30],
        ["burst", "api", "minute", False, 15, 15],
        ["span", "api", "day", False, -1, 90],
    ],
    2: [
        ["calls", "tokens", "month", False, 40, 40],
        ["daily", "api", "day", False, 30, 50],
        ["bill", "api", "billing", False, -1, 80],
        ["ever", "tokens", "lifetime", False, 25, 200],
        ["tick", "api", "second", True, -1, 5],
        ["span", "api", "hour", False, -1, 70],
    ],
}
SERIES = ("api", "tokens", "api@users:7", "api@users:a:b", "api@users2:7", "tokens@calls:7")
UNITS = st.integers(0, 25)
TENANT = st.sampled_from(TENANTS)
WRITER = st.sampled_from(WRITERS)
MOVES_MS = (1, 400, 900, *[9_000] * 8, 11_000, 61_000, HOUR_MS, 30 * HOUR_MS, 49 * HOUR_MS, -500, -5_000)
HOURS_AGO = st.sampled_from((0, 0, 0, 1, 3, 30, 46, 47, 60, -1))


class Writer:
    """What a writer remembers: its counts, its sequence and what it was answered."""

    def __init__(self, name: str, generation: str) -> None:
        self.name = name
        self.sequence = 0
        self.acknowledged = 0
        self.generation = generation
        self.counts: dict[tuple[str, str, int, int], int] = {}
        self.small: dict[tuple[str, str, int], int] = {}
        self.leases: dict[tuple[str, str, int], int] = {}
        self.sent: list[list[Any]] = []


class ScriptMachine(RuleBasedStateMachine):
    """Runs the same calls on the scripts and on the model."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.server = ScriptServer(self.url, f"t{secrets.token_hex(6)}")
        self.shard = Shard(self.server.tag, START_MS)
        self.writers: dict[str, Writer] = {}
        self.calls = 0
        self.ledger_epoch = 0
        self.collected: list[list[Any]] = []
        self.collected_in = ""

    def teardown(self) -> None:
        self.server.close()

    def call(self, script: str, keys: list[str], *arguments: object) -> Any:
        shard = self.shard
        self.calls += 1
        fresh = f"g{self.calls}"
        self.server.set_clock(shard.clock, shard.replid)
        answer = self.server.call(script, shard.offset, fresh, keys, *arguments)
        shard.begin(fresh)
        return answer

    @initialize()
    def restore(self) -> None:
        self.collect(most=0, ahead=0)
        for tenant in TENANTS[:2]:
            self.publish(tenant, revision=1, older=0, moved=False, behind=0)
        self.open(first=True, hold="full", other=False, awaited=[])
        self.writers = {name: Writer(name, self.shard.generation) for name in WRITERS}

    @rule(ms=st.sampled_from(MOVES_MS))
    def server_clock_moves(self, ms: int) -> None:
        self.shard.clock += ms
        self.shard.keys.now = self.shard.clock
        self.server.delete(*self.shard.keys.expired())

    @rule(hours=st.sampled_from((0, 0, -2, 1, 24, 50)))
    def development_clock_moves(self, hours: int) -> None:
        self.shard.offset += hours * HOUR_MS

    @rule(how=st.sampled_from((*[""] * 8, "epoch", "failover")))
    def lose_state(self, how: str) -> None:
        if how == "failover":
            self.shard.replid = "b" if self.shard.replid == "a" else "a"
        elif how:
            self.server.delete(self.shard.epoch)
            self.shard.keys.delete(self.shard.epoch)

    @rule(names=st.lists(WRITER, min_size=1, max_size=5), data=st.data())
    def sync(self, names: list[str], data: st.DataObject) -> None:
        for name in names:
            self.sync_one(name, data)
            if self.writers[name].sent and not data.draw(st.integers(0, 3), "repeat"):
                self.a_message_comes_again(name, data.draw(st.integers(0, 2), "which"))

    def sync_one(self, name: str, data: st.DataObject) -> None:
        tenants = data.draw(st.lists(TENANT, min_size=1, max_size=2, unique=True), "tenants")
        revision = data.draw(st.sampled_from((1, 1, 2, 0, -1)), "revision")
        up_to_date = data.draw(st.integers(0, 3), "not up to date")
        writer = self.writers[name]
        writer.sequence += 1
        parts = []
        for tenant in tenants:
            if up_to_date:
                revision = int(self.shard.keys.get(self.shard.tenant_key(tenant), "rev") or -1)
            parts.append([tenant, revision, self.windows(writer, tenant, data), self.leases(writer, tenant, data)])
        acknowledged = writer.acknowledged if data.draw(st.integers(0, 19), "ack") else writer.sequence
        message = [writer.name, writer.sequence, writer.generation, acknowledged, parts]
        writer.sent.append(message)
        reply = self.send(message)
        if data.draw(st.integers(0, 4), "answered"):
            if reply[4]:
                writer.acknowledged = writer.sequence
                self.take_over(writer, parts, reply[5])
            elif reply[0] != writer.generation:
                writer.generation, writer.acknowledged = reply[0], 0

    def windows(self, writer: Writer, tenant: str, data: st.DataObject) -> list[list[Any]]:
        found = []
        for series in data.draw(st.lists(st.sampled_from(SERIES), max_size=3, unique=True), "series"):
            hour = self.shard.now // HOUR_MS - data.draw(HOURS_AGO, "hours ago")
            period = bounds("billing", hour * 3600, 1_000_000)[0]
            key = (tenant, series, period, hour)
            writer.counts[key] = writer.counts.get(key, 0) + data.draw(UNITS, "counted")
            found.append([series, period, hour, writer.counts[key]])
        return found

    def leases(self, writer: Writer, tenant: str, data: st.DataObject) -> list[list[Any]]:
        limits = limits_of(self.shard.keys.get(self.shard.tenant_key(tenant), "lim"))
        found = []
        for name, _, kind, scoped, _, _ in limits or limits_of(str(REVISIONS[1])):
            if not data.draw(st.booleans(), "reported"):
                continue
            start, end = bounds(kind, self.shard.now // 1000, 1_000_000)  # type: ignore[arg-type]
            limit_id = f"{name}:7" if scoped else name
            key = (tenant, limit_id, start)
            left = data.draw(st.integers(0, 60), "left")
            if data.draw(st.integers(0, 7), "honest"):
                left = min(left, writer.leases.get(key, 0))
            small = kind in {"second", "minute"}
            if small:
                writer.small[key] = writer.small.get(key, 0) + data.draw(UNITS, "small")
            need, want = data.draw(UNITS, "need"), data.draw(UNITS, "want")
            cumulative = writer.small[key] if small else 0
            found.append([name, limit_id, start, end * 1000, small, left, need, max(need, want), cumulative])
        return found

    def take_over(self, writer: Writer, parts: list[Any], replies: list[Any]) -> None:
        for (tenant, _, _, leases), (_, answers, *_) in zip(parts, replies, strict=True):
            for lease, answer in zip(leases, answers, strict=False):
                writer.leases[tenant, lease[1], lease[2]] = answer[0]

    def send(self, message: list[Any]) -> list[Any]:
        space, name = self.server.space, message[0]
        keys = [space.writers(0), space.writer(0, name), space.held(0, name), space.dirty(0), space.called(0)]
        reply: list[Any] = unpacked(self.call("sync", keys, RECLAIM_MS, message))
        assert reply == self.shard.sync(RECLAIM_MS, message)
        return reply

    def a_message_comes_again(self, name: str, which: int) -> None:
        sent = self.writers[name].sent
        self.send(sent[-1 - which % len(sent)])

    @rule(
        name=WRITER,
        lost=st.booleans(),
        most=st.sampled_from((1, 500)),
        successor=st.booleans(),
        told=st.sampled_from(("", "now", "before")),
    )
    def retire(self, name: str, lost: bool, most: int, successor: bool, told: str) -> None:
        space = self.server.space
        writer = self.writers[name]
        if successor and not lost:
            # Messages of the old life may still come.
            self.writers[name] = Writer(f"{name}x{self.calls}", self.shard.generation)
            self.writers[name].sent = list(writer.sent[-3:])
        name = writer.name
        keys = [space.writers(0), space.writer(0, name), space.held(0, name)]
        before = set(self.shard.keys.sets.get(space.held(0, name), set()))
        after_ms = RECLAIM_MS if lost else 0
        generation = self.shard.generation if told == "now" else told
        remaining = self.call("retire", keys, name, most, after_ms, generation)
        popped = before - self.server.state().get(space.held(0, name), (set(),))[0]
        assert remaining == self.shard.retire(name, most, after_ms, popped, generation)

    @rule(most=st.sampled_from((0, 1, 100)), ahead=st.sampled_from((0, 0, 0, 0, 1, 2, -1)))
    def collect(self, most: int, ahead: int) -> None:
        epoch = max(0, self.ledger_epoch + ahead)
        space = self.server.space
        reply = unpacked(self.call("collect", [space.dirty(0), space.writers(0)], epoch, most, RECLAIM_MS, 1_000))
        for window in reply[9]:
            window[5] = dict(zip(window[5][::2], window[5][1::2], strict=True))
        assert reply == passes.collect(self.shard, epoch, most, RECLAIM_MS)
        self.collected, self.collected_in = [window[:5] for window in reply[9]], reply[0]
        self.ledger_epoch = max(epoch, reply[5])

    @rule(names=st.lists(WRITER, max_size=2), keep=st.sampled_from((0, 0, 1)), data=st.data())
    def flush(self, names: list[str], keep: int, data: st.DataObject) -> None:
        """A pass of the flusher, with reports while Postgres commits."""
        self.collect(most=100, ahead=0)
        for name in names:
            self.sync_one(name, data)
        self.settle(keep=keep, other=False)

    @precondition(lambda self: self.collected_in)
    @rule(keep=st.integers(0, 5), other=st.booleans())
    def settle(self, keep: int, other: bool) -> None:
        generation = "another" if other and keep == 0 else self.collected_in
        self.ledger_epoch += 1
        windows = self.collected[: keep or None]
        answer = self.call("settle", [self.server.space.dirty(0)], generation, self.ledger_epoch, windows)
        assert answer == passes.settle(self.shard, generation, self.ledger_epoch, windows)

    @rule(name=WRITER, kept=st.integers(0, 3))
    def resend(self, name: str, kept: int) -> None:
        keys = list(self.writers[name].counts)[:: kept + 1]
        windows = [[tenant, f"{series}:{period}:{hour}"] for tenant, series, period, hour in keys]
        answer = self.call("resend", [self.server.space.dirty(0)], windows)
        assert answer == passes.resend(self.shard, windows)

    @rule(name=WRITER, kept=st.integers(0, 3))
    def merge(self, name: str, kept: int) -> None:
        counts = list(self.writers[name].counts.items())
        rows = [[*key, name, value] for key, value in counts[:: kept + 1] if value]
        answer = self.call("merge", [], self.shard.generation or "none", rows)
        generation = self.shard.generation if answer == 1 else "none"
        assert answer == passes.merge(self.shard, generation, rows)

    @rule(
        tenant=TENANT,
        revision=st.sampled_from((1, 2)),
        older=st.integers(0, 30),
        moved=st.booleans(),
        behind=st.sampled_from((0, 0, 0, 2, 9)),
        passes_ago=st.sampled_from((0, 0, 0, 1)),
    )
    def publish(self, tenant: str, revision: int, older: int, moved: bool, behind: int, passes_ago: int = 0) -> None:
        before = self.shard.generation
        rows: list[Any] = []
        for name, _, kind, scoped, _, _ in REVISIONS[revision] if older else []:
            start, end = bounds(kind, self.shard.direct * 3600, 1_000_000)
            rows += [f"{name}:7" if scoped else name, start, older, end * 1000]
        direct = self.shard.direct + (moved and older == 1)
        version = max(0, self.shard.keys.number(self.shard.epoch, "version") - behind)
        number = self.shard.keys.number(self.shard.epoch, "pass") - passes_ago
        message = [tenant, revision, REVISIONS[revision], before, direct, rows, version, number]
        [answer] = self.call("publish", [self.server.space.tenant(tenant)], [message], f"document {revision}")
        assert answer == passes.publish(self.shard, message, f"document {revision}")

    @rule(
        first=st.sampled_from((False, False, True)),
        hold=st.sampled_from(("full", "reported")),
        other=st.booleans(),
        awaited=st.lists(WRITER, max_size=2),
    )
    def open(self, first: bool, hold: str, other: bool, awaited: list[str]) -> None:
        generation = "another" if other and first else self.shard.generation
        arguments = (generation, int(first), RECLAIM_MS, hold, list(awaited))
        answer = self.call("open", [self.server.space.writers(0)], *arguments)
        assert answer == passes.open_(
            self.shard, generation, first=first, reclaim_after=RECLAIM_MS, hold=hold, writers=awaited
        )

    @rule(tenant=st.sampled_from((*TENANTS, "new")), catalogue=st.sampled_from((0, 1, 2)))
    def lookup(self, tenant: str, catalogue: int) -> None:
        default = (catalogue, f"default {catalogue}", REVISIONS[0]) if catalogue else None
        arguments = default or (-1, "", b"")
        state, revision, document = self.call("lookup", [self.server.space.tenant(tenant)], *arguments)
        answer = [state.decode(), revision, document and document.decode()]
        assert answer == passes.lookup(self.shard, tenant, default)

    @rule(known=st.booleans())
    def find_key(self, known: bool) -> None:
        key = self.server.space.api_key("known")
        self.server.put(key, "acme")
        self.shard.keys.strings[key] = "acme"
        sha256 = "known" if known else "unknown"
        state, tenant = self.call("find_key", [self.server.space.api_key(sha256)])
        assert [state.decode(), tenant.decode()] == passes.find_key(self.shard, sha256)

    @invariant()
    def same_keys(self) -> None:
        assert not differences(self.shard.keys.state(), self.server.state())

    @invariant()
    def held_is_the_sum_of_the_leases(self) -> None:
        for key, fields in self.shard.keys.hashes.items():
            if ":limit:" in key:
                leases = [int(value) for field, value in fields.items() if field.startswith("l:")]
                assert int(fields.get("held", 0)) == sum(leases)
                assert int(fields.get("n", 0)) == len(leases)


@pytest.fixture
def server(redis_server: EmbeddedRedis) -> Iterator[ScriptServer]:
    server = ScriptServer(redis_server.url, f"t{secrets.token_hex(6)}")
    yield server
    server.close()


def test_scripts_do_what_the_model_says(redis_server: EmbeddedRedis) -> None:
    class Machine(ScriptMachine):
        url = redis_server.url

    run_state_machine_as_test(
        Machine,
        # Without shrinking, which takes longer than a test may; to get a short example of a failure, allow it.
        settings=settings(max_examples=100, stateful_step_count=40, phases=[Phase.reuse, Phase.generate]),
    )


def test_months_begin_where_the_calendar_says(server: ScriptServer) -> None:
    expected: dict[int, int] = {}
    for month in range(1970 * 12, 2201 * 12):
        start = _month(month)
        expected |= dict.fromkeys((start, start + 1, start + 86_400 * 27, _month(month + 1) - 1), start)
    assert server.month_starts(list(expected)) == list(expected.values())


@given(seconds=st.lists(st.integers(0, 7_258_118_399), min_size=1, max_size=50))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_second_lies_in_the_month_it_is_given(server: ScriptServer, seconds: list[int]) -> None:
    assert server.month_starts(seconds) == [bounds("month", second)[0] for second in seconds]


def _month(index: int) -> int:
    return int(datetime(index // 12, index % 12 + 1, 1, tzinfo=UTC).timestamp())


def test_a_call_that_is_repeated_after_the_state_was_lost_again_begins_another_generation(
    redis_server: EmbeddedRedis,
) -> None:
    """Else whoever was told of the first one would not know that the state was lost once more (seed 9801372)."""
    server = ScriptServer(redis_server.url, f"t{secrets.token_hex(6)}")
    keys = [server.space.dirty(0), server.space.writers(0)]
    try:
        names = []
        for now_ms in (START_MS, START_MS + 1):
            server.delete(server.space.epoch(0))
            server.set_clock(now_ms, "a")
            names.append(unpacked(server.call("collect", 0, "call", keys, 0, 0, RECLAIM_MS, 0))[0])
        assert names[0] != names[1]
        assert all(name.startswith("call-") for name in names)
    finally:
        server.close()
