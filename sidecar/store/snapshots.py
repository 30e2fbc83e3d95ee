"""A tenant's snapshot as it is kept in Redis: the document for sidecars, and its limits for the scripts."""

from __future__ import annotations

import msgspec

from sidecar.catalogue.snapshot import Snapshot

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Snapshot)

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
    return _DECODER.decode(document)


def encode_limits(snapshot: Snapshot) -> bytes:
    """The limits as msgpack, for scripts that take them as an argument."""
    return _ENCODER.encode(script_limits(snapshot))
