"""One run of what bills, from beginning to rest."""

from __future__ import annotations

import traceback
from random import Random

from tests.simulation.billing.faults import Weather
from tests.simulation.billing.invariants import check, heal
from tests.simulation.billing.world import Billing, simulated


def bill(seed: int) -> Billing:
    """One run, from beginning to rest."""
    world = Billing(seed)
    with simulated(Random(f"{seed} tokens"), world.loop, lambda about: world.violated("crash", about)):
        try:
            Weather(world).live()
            heal(world)
            check(world)
        except Exception:  # noqa: BLE001 - whatever breaks is a finding of this seed
            world.violated("crash", traceback.format_exc())
    return world
