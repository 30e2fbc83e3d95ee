"""What a snapshot says, apart from whose it is and when its periods begin: tenants of one plan share it."""

from __future__ import annotations

from msgspec import Struct

from sidecar.catalogue.snapshot import LimitRule, Snapshot
from sidecar.memo import remember

SHARED_MAX = 4_096

Features = tuple[tuple[str, str], ...]
_shared: dict[tuple[object, ...], Contract] = {}


class Contract(Struct, frozen=True, eq=False):
    """Fields of a snapshot as they are; ``forwarded``: the features that the upstream is told, as text."""

    plan: str
    status: str
    status_until_s: int
    interval_months: int
    shadow: bool
    features: dict[str, str | int | bool]
    forwarded: Features
    limits: tuple[LimitRule, ...]


def contract(snapshot: Snapshot) -> Contract:
    """The contract of a tenant, which is that of every tenant with the same one."""
    # A feature that is 1 is not one that is True, though they are equal.
    kinds = tuple((name, type(value), value) for name, value in snapshot.features.items())
    said = (snapshot.plan, snapshot.status, snapshot.status_until_s, snapshot.interval_months, snapshot.shadow)
    key = (*said, kinds, snapshot.forward, snapshot.limits)
    found = _shared.get(key)
    if found is None:
        features = snapshot.features
        forwarded = tuple((name, _text(features[name])) for name in snapshot.forward if name in features)
        found = remember(_shared, key, Contract(*said, features, forwarded, snapshot.limits), SHARED_MAX)
    return found


def _text(value: str | int | bool) -> str:  # noqa: FBT001 - a feature's value
    return str(value).lower() if isinstance(value, bool) else str(value)
