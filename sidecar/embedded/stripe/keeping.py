"""The kept state: everything of an account in one file.

Guarantees: a file is whole or is the one before; a stand-in started on it goes on where that one was.
Gives up:   what happened since the last save, when the process is killed.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
from msgspec import Struct

from sidecar.embedded.stripe.account import PREFIXES, Account, Object, Options
from sidecar.embedded.stripe.delivery import Deliveries, Delivery
from sidecar.embedded.stripe.events import Told
from sidecar.embedded.stripe.idempotency import Idempotency, Remembered
from sidecar.embedded.stripe.metering import MeterEvent, Refusal

FORMAT = 1


class Kept(Struct, kw_only=True):
    """The file's form."""

    format: int = FORMAT
    own_ms: int
    options: Options
    tables: dict[str, dict[str, Object]]
    due: list[tuple[int, str, str]]
    streamed: list[tuple[Told, str]]
    events: list[MeterEvent]
    refused: list[Refusal]
    came: dict[str, int]
    idempotency: dict[str, Remembered]
    deliveries: list[Delivery]


def save(path: Path, account: Account, idempotency: Idempotency, deliveries: Deliveries) -> None:
    """Write the file; it holds webhook secrets, so only its owner may read it."""
    metering = account.metering
    kept = Kept(
        own_ms=account.clock.own_ms,
        options=account.options,
        tables=account.tables,
        due=account.pending,
        streamed=account.streamed,
        events=metering.events(),
        refused=list(metering.refused),
        came=dict(metering.came),
        idempotency={key: known for key, known in idempotency.known.items() if known.status},
        deliveries=deliveries.all,
    )
    beside = path.with_name(f"{path.name}.new")
    beside.touch(mode=0o600)
    beside.write_bytes(msgspec.json.encode(kept))
    beside.replace(path)


def load(path: Path, account: Account, idempotency: Idempotency, deliveries: Deliveries) -> None:
    """Take over what a file holds; raises ValueError when it is none of ours."""
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=Kept)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} is no state of the stand-in ({error}); remove it to start anew") from error
    if kept.format != FORMAT:
        raise ValueError(f"{path} is of another version of the stand-in; remove it to start anew")
    account.clock.own_ms = kept.own_ms
    account.options = kept.options
    account.tables = {kind: kept.tables.get(kind, {}) for kind in PREFIXES}
    account.streamed = [(told, code) for told, code in kept.streamed]
    for event in kept.events:
        account.metering.add(event)
    account.metering.refused.extend(kept.refused)
    account.metering.came = Counter(kept.came)
    for when_s, kind, identity in kept.due:
        account.schedule(when_s, kind, identity)
    idempotency.known.update(kept.idempotency)
    deliveries.all = kept.deliveries
