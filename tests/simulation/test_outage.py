"""How long requests wait while Redis is away, and how soon and with how many calls all goes on: in virtual time.

Time is exact here: a wait that is a millisecond too long fails.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import Struct

from sidecar.enforcement.enforcer import WAIT_MS
from tests.simulation.catalogues import catalogue
from tests.simulation.worker import TERMS, Worker
from tests.simulation.world import World, simulated

CATALOGUE = """
default_plan: closed
identity:
  - header: x-tenant-id
metrics:
  calls: {}
plans:
  closed:
    limits: {calls: {included: 1_000_000, period: month, cap: hard}}
  open:
    limits: {calls: {included: 1_000_000, period: month, cap: hard, on_outage: open}}
  bounded:
    limits: {calls: {included: 1_000_000, period: month, cap: hard, on_outage: {bounded: 5}}}
  soft:
    limits: {calls: {included: 10, cap: soft}}
default:
  costs: {calls: 1}
"""
PLANS = ("closed", "open", "bounded", "soft")
TENANTS = [f"{plan}-{number}" for plan in PLANS for number in range(10)]
WORKERS = 4
EVERY_MS = 2
STARTED_MS = 1_500
AWAY_MS = STARTED_MS + 4_000
BACK_MS = AWAY_MS + TERMS.lease_ttl_ms + 4_000
END_MS = BACK_MS + 3_000
SECOND_MS = 1_000
# A test's network takes up to 3 ms each way, so what Redis answers takes less than this.
ANSWERED_MS = 8


class Asked(Struct):
    """One request: to whom, when, with the breaker open or not, and what came of it after how long."""

    worker: str
    tenant: str
    at_ms: int
    breaker_open: bool
    status: int = 0
    mark: str = ""
    waited_ms: int = -1


class Run:
    """A world in which nothing fails but Redis, and every request is kept."""

    def __init__(self, world: World, how: str) -> None:
        self.asked: list[Asked] = []
        self.calls: dict[int, int] = {}  # of Redis, by tenth of a second
        self._world = world
        self._how = how
        world.postgres.apply_catalogue(CATALOGUE)
        for tenant in TENANTS:
            world.postgres.put_tenant(tenant, plan=tenant.partition("-")[0])
        world.start_flusher()
        self.workers = [world.start_worker(world.add_machine()) for _ in range(WORKERS)]

    def live(self, *, newcomers: bool = False) -> None:
        loop = self._world.loop
        loop.run_until(STARTED_MS)
        chance = random.Random(7)
        for at_ms in range(STARTED_MS, END_MS, EVERY_MS):
            new = newcomers and at_ms % 50 == 0
            tenant = f"new-{at_ms}" if new else chance.choice(TENANTS)
            loop.at(at_ms, self._ask, chance.choice(self.workers), tenant)
        loop.at(AWAY_MS, self._goes)
        loop.at(BACK_MS, self._returns)
        for at_ms in range(0, END_MS, 100):
            loop.at(at_ms, self._count, at_ms // 100)
        loop.run_until(END_MS + SECOND_MS)

    def between(self, from_ms: int, to_ms: int) -> list[Asked]:
        return [one for one in self.asked if from_ms <= one.at_ms < to_ms]

    def calls_between(self, from_ms: int, to_ms: int) -> int:
        return self.calls[to_ms // 100] - self.calls[from_ms // 100]

    def _goes(self) -> None:
        if self._how == "refuses":
            self._world.redis.up = False
        else:
            self._world.network.cut.update(worker.process for worker in self.workers)

    def _returns(self) -> None:
        self._world.redis.up = True
        self._world.network.cut.clear()

    def _count(self, tenth: int) -> None:
        self.calls[tenth] = self._world.redis.calls

    def _ask(self, worker: Worker, tenant: str) -> None:
        now = self._world.loop.now_ms
        one = Asked(worker.process.name, tenant, now, not worker.core._store.available)
        self.asked.append(one)

        def answered(_worker: Worker, decision: object) -> None:
            one.status, one.mark = decision.status, decision.quota_status  # type: ignore[attr-defined]
            one.waited_ms = self._world.loop.now_ms - now

        worker.request(tenant, catalogue(CATALOGUE).routes[-1], "", answered)


@pytest.fixture(params=["refuses", "drops packets"])
def outage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Run]:
    world = World(5, tmp_path)
    with simulated(random.Random(9), world.loop):
        run = Run(world, request.param)
        yield run
        for worker in run.workers:
            worker.kill(torn=False)


pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")


def test_no_request_waits_more_than_50_ms_and_none_once_the_breaker_is_open(outage: Run) -> None:
    outage.live(newcomers=True)
    away = outage.between(AWAY_MS, BACK_MS)
    assert all(one.waited_ms >= 0 for one in outage.asked), "somebody got no answer"
    # What Redis still answered before it went does not count as waiting for nothing.
    assert max(one.waited_ms for one in away) <= WAIT_MS + ANSWERED_MS
    assert {one.waited_ms for one in away if one.breaker_open} == {0}
    assert any(one.waited_ms > 0 for one in away)


def test_each_policy_decides_in_an_outage_and_stops_deciding_within_a_second_of_its_end(outage: Run) -> None:
    outage.live()
    settled = outage.between(AWAY_MS + TERMS.lease_ttl_ms + SECOND_MS, BACK_MS)
    marks = {plan: {(a.status, a.mark) for a in settled if a.tenant.startswith(plan)} for plan in PLANS}
    assert marks["closed"] == {(503, "denied")}
    assert marks["open"] == {(200, "degraded")}
    assert marks["bounded"] <= {(200, "degraded"), (503, "denied")}
    assert marks["soft"] == {(200, "grace")}
    admitted = {tenant: 0 for tenant in TENANTS if tenant.startswith("bounded")}
    for one in outage.between(AWAY_MS, BACK_MS):
        if one.tenant in admitted and one.mark == "degraded":
            admitted[one.tenant] += 1
    assert max(admitted.values()) == 5 * WORKERS, "each worker admits its bound, and no more"
    later = outage.between(BACK_MS + SECOND_MS, END_MS)
    assert {(one.status, one.mark) for one in later} == {(200, "ok"), (200, "grace")}


def test_there_is_no_herd_when_redis_comes_back(outage: Run) -> None:
    """A return is a start at which the tenants are known already: shards are synced once, not tenants looked up."""
    outage.live()
    begun = outage.calls_between(STARTED_MS, STARTED_MS + SECOND_MS)
    back = outage.calls_between(BACK_MS, BACK_MS + SECOND_MS)
    assert 0 < back < begun / 2
