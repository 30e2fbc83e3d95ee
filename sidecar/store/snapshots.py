"""A tenant's snapshot as it is kept in Redis: the document for sidecars, and its limits for the scripts.

Guarantees: tenants of one plan share its limits and features in memory, which would be most of what a snapshot takes.
"""

from __future__ import annotations

from sys import intern

import msgspec
from msgspec import structs

from sidecar.catalogue.snapshot import LimitRule, Snapshot

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Snapshot)

SHARED_MAX = 4_096

Features = dict[str, str | int | bool]
Shared = tuple[tuple[LimitRule, ...], Features, tuple[str, ...]]
_shared: dict[tuple[object, ...], Shared] = {}

ScriptLimit = tuple[str, str, str, bool, int, int]


def script_limits(snapshot: Snapshot) -> list[ScriptLimit]:
    """(name, metric, period, scoped, included, stop) of every limit; -1 stands for none."""
    return [
        (
            rule.name,
            rule.metric,
            rule.period,
            rule.scope != "tenant",
            -1 if rule.included is None else rule.included,
            -1 if rule.stop is None else rule.stop,
        )
        for rule in snapshot.limits
    ]


def encode(snapshot: Snapshot) -> bytes:
    """The document that sidecars read."""
    return _ENCODER.encode(snapshot)


def decode(document: bytes) -> Snapshot:
    """Reverse of ``encode``; raises msgspec.DecodeError for anything else."""
    read = _DECODER.decode(document)
    # A feature that is 1 is not one that is True, though they are equal.
    kinds = tuple((name, type(value), value) for name, value in read.features.items())
    key = (read.limits, kinds, read.forward)
    found = _shared.get(key)
    if found is None:
        if len(_shared) >= SHARED_MAX:
            _shared.clear()
        found = _shared[key] = (read.limits, read.features, read.forward)
    limits, features, forward = found
    return structs.replace(
        read, plan=intern(read.plan), status=intern(read.status), limits=limits, features=features, forward=forward
    )


def encode_limits(snapshot: Snapshot) -> bytes:
    """The limits as msgpack, for scripts that take them as an argument."""
    return _ENCODER.encode(script_limits(snapshot))
