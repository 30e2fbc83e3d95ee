"""L1 before it can be broken: what a writer may spend of a second or a minute, Redis has set aside for it."""

from __future__ import annotations

from unittest import mock

import pytest

from tests.properties.models.covering import CAP, Covering

STEPS = 250


@pytest.mark.parametrize("seed", range(40))
def test_redis_has_set_aside_what_a_writer_may_spend(seed: int) -> None:
    """Whatever the writers' clocks and the plan do, and however little fits into a message."""
    world = Covering(seed)
    with mock.patch("sidecar.enforcement.exchange.LIMITS_PER_SYNC", 2 + seed % 6):
        for _ in range(STEPS):
            world.step()
            assert world.uncovered() == []
            assert max(world.admitted.values(), default=0) <= CAP
