"""Every metric that a catalogue in force ever had: what was counted of it is in its base unit for good.

Guarantees: a metric that left the catalogue is still known, so that what was counted of it can be told and billed; one
            that comes back counts in the base unit it had.
Gives up:   metrics of revisions that this program cannot read any more; they are logged.
"""

from __future__ import annotations

import logging
from typing import Literal

from msgspec import Struct

from sidecar.catalogue.load import parse
from sidecar.errors import CatalogueInvalid
from sidecar.ledger.transaction import Transaction
from sidecar.logs import fields

log = logging.getLogger(__name__)


class KnownMetric(Struct, frozen=True):
    """A metric as the newest catalogue that had it says. ``revision`` is that catalogue's."""

    name: str
    kind: Literal["sum", "level"]
    scale: int
    revision: int


async def known(tx: Transaction) -> dict[str, KnownMetric]:
    """All of them by name; revisions that nobody looked at yet are read first."""
    seen, newest = (await tx.rows("metrics_known"))[0]
    if seen < newest:
        await _learn(tx, int(seen))
    return {row["metric"]: KnownMetric(*row) for row in await tx.rows("metrics")}


async def _learn(tx: Transaction, seen: int) -> None:
    found: dict[str, KnownMetric] = {}
    until = seen
    for revision, document in await tx.rows("catalogues_since", seen):
        until = int(revision)
        try:
            catalogue = parse(document, f"catalogue revision {revision}")
        except CatalogueInvalid as error:
            log.warning("a former catalogue cannot be read", extra=fields(revision=until, cause=error.problems[0]))
            continue
        found |= {name: KnownMetric(name, one.kind, one.scale, until) for name, one in catalogue.metrics.items()}
    await tx.rows(
        "know_metrics",
        list(found),
        [one.kind for one in found.values()],
        [one.scale for one in found.values()],
        [one.revision for one in found.values()],
    )
    await tx.rows("metrics_known_until", until)
