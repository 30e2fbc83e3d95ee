"""What goes wrong in a run of what bills, drawn from the seed; every fault also arranges for its own end."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from sidecar.catalogue.period import bounds
from tests.simulation.billing.world import (
    CLOSE_DELAY_S,
    DAY_S,
    HOUR_S,
    SCALES,
    SHARDS,
    TENANTS,
    Backoffice,
    Billing,
)

LENGTHS_MS = (3_000, 5_000, 5_000, 8_000)
MINUTE_MS, HOUR_MS = 60_000, 3_600_000
AGE_MS_MAX = 20 * 24 * HOUR_MS
LAG_MS_MAX = 25 * MINUTE_MS  # summaries are looked at half an hour after a call


class Weather:
    """Plans the faults of one run; every one also arranges for its own end."""

    def __init__(self, world: Billing) -> None:
        self._world = world
        self._random = Random(world.random.random())
        self._length_ms = self._random.choice(LENGTHS_MS)
        self._backup: Any = None
        self._restores = False
        self._passed_ms = 0

    def live(self) -> None:
        world, random = self._world, self._random
        rates = world.stripe.rates.of
        if random.random() < 0.6:
            for kind in rates:
                rates[kind] = random.choice((0, 0, 20, 80, 250))
        blows: list[Callable[[], None]] = [
            self.kill, self.kill_at_effect, self.kill_at_effect, self.second, self.pause, self.stripe_down,
            self.stripe_down_for_long, self.postgres_down, self.postgres_restored, self.minutes, self.hours, self.days,
            self.period_ends, self.period_ends, self.late, self.summaries_late, self.storm, self.storm,
        ]  # fmt: skip
        chosen = random.sample(blows, random.randrange(2, 8))
        self._restores = self.postgres_restored in chosen
        if self._restores:
            rates["reported"] = 0  # a report that only the lost ledger heard is for reconciliation to find
        for _ in range(random.randrange(2, 9)):
            world.plan(random.randrange(400, self._length_ms), random.choice(chosen))
        for at in range(300, self._length_ms, 700):
            if self._restores:
                world.plan(at, self._remember)
        if self._restores and random.random() < 0.3:
            world.plan(random.randrange(300, self._length_ms // 2), self.asleep)
        at = 0
        while at < self._length_ms:
            world.plan(at, self._use)
            at += random.randrange(20, 700)
        world.loop.run_until(self._length_ms)

    def _later(self, ms: int, call: Callable[..., None], *arguments: Any) -> None:
        self._world.plan(self._world.loop.now_ms + ms, call, *arguments)

    def _use(self) -> None:
        units = self._random.choice((1, 3, self._random.randrange(1, 2_000), self._random.randrange(1, 5_000)))
        if self._random.random() < 0.02 and not self._restores:  # Stripe's sums are doubles
            units = self._random.randrange(10**15, 4 * 10**15)
        self._world.use(self._random.choice(TENANTS), self._random.choice(list(SCALES)), units)

    def _remember(self) -> None:
        self._backup = self._world.backup() or self._backup

    # Processes.

    def _office(self) -> Backoffice | None:
        alive = self._world.alive()
        return self._random.choice(alive) if alive else None

    def _replace(self) -> None:
        if not self._world.alive():
            self._world.start_office()

    def kill(self) -> None:
        office = self._office()
        if office is not None:
            self._world.count("forwarder killed")
            self._world.kill(office.process)
            self._later(self._random.choice((1, 800, 2_000)), self._replace)

    def kill_at_effect(self) -> None:
        office = self._office()
        if office is not None:
            self._world.count("forwarder killed at an effect")
            self._world.fuses[office.process] = self._random.randrange(60)
            self._later(self._random.choice((1_000, 3_000)), self._replace)

    def second(self) -> None:
        if len(self._world.alive()) < 3:
            self._world.count("second forwarder")
            self._world.start_office()

    def pause(self) -> None:
        """A process stands still, maybe until its claims have ended and another one has taken its lanes."""
        office = self._office()
        if office is None:
            return
        self._world.count("forwarder paused")
        office.process.paused = True
        if self._random.random() < 0.6:
            self._world.start_office()
            self._later(200, self._world.leap, self._random.choice((100_000, 160_000, 400_000)))
        self._later(self._random.choice((600, 2_500)), self._world.loop.resume, office.process)

    def asleep(self) -> None:
        """A process stands still while Postgres is restored and Stripe forgets, and wakes with what it knew before."""
        office = self._office()
        if office is None:
            return
        self._world.count("forwarder asleep through a restore")
        office.process.paused = True
        self._world.start_office()
        # By then the claim that it may have left has ended.
        self._later(300, self._world.leap, 160_000)
        asleep_ms = self._random.choice((1_500, 2_500))
        self._later(asleep_ms - 100, self.postgres_restored)
        self._later(asleep_ms, self._leap, self._random.choice((25, 30)) * HOUR_MS)
        self._later(asleep_ms + 1, self._world.loop.resume, office.process)

    # Stripe.

    def _up(self) -> None:
        self._world.stripe.up = True

    def stripe_down(self) -> None:
        self._world.count("stripe outage")
        self._world.stripe.up = False
        self._later(self._random.randrange(200, 3_000), self._up)

    def stripe_down_for_long(self) -> None:
        """Longer than it remembers identifiers, with calls of which nobody knows whether they arrived."""
        self._world.count("stripe outage beyond a day")
        rates = self._world.stripe.rates.of
        before = dict(rates)
        rates["answer lost"] = rates["error after"] = 700
        self._later(700, rates.update, before)
        self._later(800, self.stripe_down)
        self._later(1_000, self._leap, self._random.choice((25, 25, 30, 49)) * HOUR_MS)

    def summaries_late(self) -> None:
        self._world.count("summaries late")
        self._world.stripe.lag_ms = self._random.randrange(LAG_MS_MAX)

    def storm(self) -> None:
        """For a moment most calls go wrong in one way."""
        rates = self._world.stripe.rates.of
        kind = self._random.choice([kind for kind in rates if kind != "reported" or not self._restores])
        before = rates[kind]
        self._world.count(f"storm of {kind}")
        rates[kind] = 600
        self._later(self._random.randrange(300, 2_000), rates.__setitem__, kind, before)

    # Postgres.

    def _postgres_up(self) -> None:
        self._world.postgres.up = True

    def postgres_down(self) -> None:
        self._world.count("postgres outage")
        self._world.postgres.stop()
        self._later(self._random.randrange(200, 1_500), self._postgres_up)

    def postgres_restored(self) -> None:
        """Postgres comes back as it was; Stripe has what was sent since."""
        found = self._backup
        if found is None:
            return
        # It is by a shard's epoch that anybody sees it.
        if all(self._world.counts.epochs[shard] <= found.shards.get(shard, [0])[0] for shard in range(SHARDS)):
            return
        self._world.count("postgres restored, stripe ahead")
        self._world.postgres.stop()
        self._world.postgres.restore(found)
        for shard in range(SHARDS):  # each has its row since it was opened, before anything was counted
            self._world.postgres.tables.shards.setdefault(shard, [0, ""])
        self._later(self._random.choice((50, 1_000)), self._postgres_up)

    # Time and usage.

    def _leap(self, ms: int) -> None:
        if self._restores and self._passed_ms + ms > AGE_MS_MAX:
            return  # what Stripe has of a time as long ago is compared no more
        self._world.note(f"{ms / 60_000:.0f} minutes pass")
        self._world.leap(ms)
        if self._restores:
            self._passed_ms += ms

    def minutes(self) -> None:
        self._world.count("minutes pass")
        self._leap(self._random.randrange(1, 45) * MINUTE_MS)

    def hours(self) -> None:
        self._world.count("hours pass")
        self._leap(self._random.choice((1, 2, 5, 12, 23)) * HOUR_MS)

    def days(self) -> None:
        self._world.count("days pass")
        self._leap(self._random.choice((25, 30, 72, 24 * 9)) * HOUR_MS)

    def period_ends(self) -> None:
        """Come close to the end of a billing period, or to its closing."""
        world = self._world
        ends_s = bounds("billing", world.now_s, world.meters.anchor_s, 1)[1]
        wanted_s = ends_s + self._random.choice((0, 0, CLOSE_DELAY_S, CLOSE_DELAY_S, CLOSE_DELAY_S - 60))
        wanted_ms = wanted_s * 1000 - self._random.choice((-2_000, 500, 1_500, 3_000, 60_500, 100_000, 300_000))
        if wanted_ms > world.now_ms():
            world.count("period ends")
            self._leap(wanted_ms - world.now_ms())

    def late(self) -> None:
        """A journal is found: usage of long ago."""
        self._world.count("late usage")
        ago_s = self._random.choice((HOUR_S, 5 * HOUR_S, 30 * HOUR_S, 20 * DAY_S, 40 * DAY_S))
        tenant, metric = self._random.choice(TENANTS), self._random.choice(list(SCALES))
        self._world.use(tenant, metric, self._random.randrange(1, 900), ago_s)
