"""Terms of the sync protocol, as the settings have them."""

from __future__ import annotations

from typing import NamedTuple


class Terms(NamedTuple):
    """Settings of the protocol; times in ms."""

    lease_ttl_ms: int = 10_000
    reclaim_after_ms: int = 60_000
    lease_seconds: int = 2
    lease_units_max: int = 1_000_000
    lease_rest_ms: int = 180_000
