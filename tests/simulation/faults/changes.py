"""Plans that change, and time that passes."""

from __future__ import annotations

from random import Random

from tests.simulation.catalogues import PLANS
from tests.simulation.faults.blows import Blows
from tests.simulation.world import TENANTS, World

HOURS_LEAPT = (1, 2, 5, 23, 30, 46, 48, 60, 24 * 41)


def change_plan(world: World, draw: Random) -> None:
    """Another plan for somebody, drawn from that stream, and told of."""
    if world.postgres.up:
        tenant, plan = draw.choice(TENANTS), draw.choice(PLANS)
        world.count("plan changed", f"{tenant} to {plan}")
        world.postgres.put_tenant(tenant, plan=plan)


class Changes(Blows):
    """Changes of a tenant's plan and of the catalogue, heard and unheard; hours that pass at once."""

    def change(self, draw: Random) -> None:
        """Another plan for somebody, drawn from that stream."""
        if self._world.postgres.up:
            self._world.postgres.put_tenant(draw.choice(TENANTS), plan=draw.choice(PLANS))

    def change_plan(self) -> None:
        change_plan(self._world, self._random)

    def change_catalogue(self) -> None:
        if self._world.postgres.up:
            number = self._random.randrange(len(self._world.texts))
            self._world.count("catalogue changed", f"to {number}")
            self._world.postgres.apply_catalogue(self._world.texts[number])

    def change_unheard(self) -> None:
        """Workers do not hear what is announced; a plan changes, and changes again."""
        self._world.count("changes unheard")
        for worker in self._world.workers():
            if self._random.random() < 0.7:
                self._world.network.deaf.add(worker.process)
        self.change_plan()
        self._later(self._random.randrange(2_000, 6_000), self.change_plan)
        self._later(14_000, self._world.network.deaf.clear)

    def leap(self) -> None:
        """All machines sleep for hours and wake together."""
        if self._run.restored:
            return  # Redis keeps what is in the ledger for two days only, and must have it still
        hours = self._random.choice(HOURS_LEAPT)
        self._world.count("hours pass", str(hours))
        self._world.loop.leap(hours * 3_600_000)
        self._run.backup = None
