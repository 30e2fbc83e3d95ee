"""What the oracle takes for a sign of life, for an exception, and for a shortcut of a worker that stops."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from unittest import mock

import msgspec
import pytest
from msgspec import structs

from sidecar.catalogue.snapshot import LimitRule, Snapshot
from sidecar.usage.window import WindowKey
from tests.simulation.oracle import NEVER_MS, Oracle
from tests.simulation.redis import MemoryRedis
from tests.simulation.worker import Worker
from tests.simulation.world import World, simulated

NOW_MS = 1_000_000
HOUR = 492_322
TAG = "sc:{s000}:"
DAILY = LimitRule("calls", "api", "day", "tenant", (), 100, 100, "deny", 0, "closed", 0, shadow=False)
DAY_S = HOUR * 3600 // 86_400 * 86_400
KEY = ("acme", "calls", DAY_S)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Workers in it do nothing by themselves."""
    world = World(1, tmp_path)
    with simulated(Random(1), world.loop), mock.patch.object(Worker, "start"):
        yield world


def server(replid: str) -> MemoryRedis:
    made = MemoryRedis(lambda: NOW_MS, replid)
    made.command(b"HSET", (f"{TAG}tenant:acme", "rev", "1"))
    return made


def judging() -> Oracle:
    """One tenant, of which a writer has spent seven units that nobody was told of."""
    oracle = Oracle(lambda: NOW_MS, (TAG,), lambda _text: None)
    oracle.silent_after_ms = 60_000
    oracle.snapshots["acme"] = Snapshot("acme", 1, "plan", "active", 0, "", 0, 1, {}, (), shadow=False, limits=(DAILY,))
    oracle.counted["w"][WindowKey("acme", "api", 0, HOUR)] = 7
    return oracle


def test_whom_an_old_primary_heard_is_silent_for_the_new_one() -> None:
    oracle, old, new = judging(), server("old"), server("new")
    oracle.accepted(old, TAG, "w", "g1", 1)
    assert (oracle.heard_ms(old, TAG, "w"), oracle.heard_ms(new, TAG, "w")) == (NOW_MS, NEVER_MS)
    new.command(b"HSET", (f"{TAG}epoch", "state", "open", "since", "0", "open_at", "60000"))
    oracle.grants(new, TAG, "g2")
    assert oracle.slack[KEY] == 7


def test_who_was_heard_by_the_server_that_takes_its_lease_back_is_no_exception() -> None:
    oracle, old, new = judging(), server("old"), server("new")
    oracle.accepted(old, TAG, "w", "g1", 1)
    for one, generation in ((old, "g1"), (new, "g2")):
        one.command(b"HSET", (f"{TAG}epoch", "gen", generation))
    lease = f"{TAG}limit:acme:calls:{DAY_S}".encode()
    oracle.taken_back(old, lease, b"l:w", 5)
    assert oracle.slack[KEY] == 0
    oracle.taken_back(new, lease, b"l:w", 5)
    assert oracle.slack[KEY] == 5
    assert oracle.reclaimed_in == {(TAG, "g1"): 5, (TAG, "g2"): 5}


def test_what_nobody_was_told_of_is_excepted_from_a_limit_that_begins_under_the_name_of_another() -> None:
    oracle, redis = judging(), server("one")
    before = oracle.snapshots["acme"]
    oracle.published(redis, structs.replace(before, rev=2, limits=(structs.replace(DAILY, stop=50),)))
    assert oracle.slack == {}
    oracle.published(redis, structs.replace(before, rev=3, limits=(structs.replace(DAILY, period="hour"),)))
    assert oracle.slack == {("acme", "calls", HOUR * 3600): 7}


def test_only_a_successor_has_to_know_what_the_writer_it_retires_had_counted(world: World) -> None:
    machine = world.add_machine()
    worker, heir = world.start_worker(machine), world.start_worker(machine)
    world.oracle.snapshots["acme"] = judging().snapshots["acme"]
    world.oracle.counted[worker.core.writer][WindowKey("acme", "api", 0, HOUR)] = 7
    retire(world, worker, worker.core.writer)
    worker.process.alive = False  # and a copy of it comes once more
    retire(world, worker, worker.core.writer)
    assert world.oracle.violations == []
    retire(world, heir, worker.core.writer)
    assert [about.partition(":")[0] for about in world.oracle.violations] == ["L1"]
    for one in (worker, heir):
        one.kill(torn=False)


def test_a_worker_whose_own_retirement_was_carried_out_is_watched_from_then_on(world: World) -> None:
    worker = world.start_worker(world.add_machine())
    retire(world, worker, "somebody")
    assert world.oracle.retiring == set()
    retire(world, worker, worker.core.writer)
    assert world.oracle.retiring == {worker.core.writer}
    worker.kill(torn=False)


def test_a_cap_that_is_in_force_but_not_yet_published_is_not_exceeded() -> None:
    oracle, redis = judging(), server("one")
    oracle.published(redis, structs.replace(oracle.snapshots["acme"], rev=2, limits=(structs.replace(DAILY, stop=5),)))
    state = mock.Mock(id="calls", rule=DAILY, period=mock.Mock(start_s=DAY_S, small=False))
    oracle.used["acme", "api"][0, HOUR] = 7
    oracle.ledger_says = lambda _tenant: (structs.replace(DAILY, stop=7),)
    oracle._check(KEY, state)
    assert oracle.violations == []
    oracle.ledger_says = lambda _tenant: (structs.replace(DAILY, period="month"), structs.replace(DAILY, stop=6))
    oracle._check(KEY, state)
    assert [about.partition(":")[0] for about in oracle.violations] == ["L1"]


def retire(world: World, sender: Worker, writer: str) -> None:
    """The server has run the script for a message of this process."""
    context = msgspec.msgpack.encode([TAG, 0, f"{sender.process.name}-7"])
    world.witness.ran(world.redis, "retire", (context, writer, 500, 0), 0)
