"""The catalogue in force: read from the ledger, parsed once a revision, and put in force.

Guarantees: only a text that passed every check is applied, and none in which a metric has another base unit than
            before; the parsed form is always that of the revision it names.
"""

from __future__ import annotations

from typing import Any

from sidecar.catalogue.load import parse
from sidecar.catalogue.model import Catalogue
from sidecar.catalogue.rescaled import rescaled
from sidecar.errors import CatalogueInvalid, NotFound
from sidecar.ledger import metrics, plans
from sidecar.ledger.plans import PlanVersion
from sidecar.ledger.transaction import Transaction

TEXT_BYTES_MAX = 1_000_000


class Catalogues:
    """Remembers the newest parsed catalogue, since every request of the API needs it."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: tuple[int, Catalogue] | None = None

    async def in_force(self, tx: Transaction) -> Catalogue:
        """The applied catalogue; NotFound before the first one."""
        version = await plans.current(tx)
        if version is None:
            raise NotFound("no catalogue is applied; run `sidecar catalogue apply FILE`")
        if self._kept is None or self._kept[0] != version.revision:
            self._kept = (version.revision, parse(version.document, f"catalogue revision {version.revision}"))
        return self._kept[1]


async def apply(tx: Transaction, text: str, name: str, *, actor: str) -> PlanVersion:
    """Check a text and put it in force; CatalogueInvalid names every problem and nothing changes."""
    # Two at once would both be compared with the metrics before them.
    await tx.rows("lock_tenants")
    found = await checked(tx, text, name)
    return await plans.apply(tx, text, summary(found), actor=actor)


async def checked(tx: Transaction, text: str, name: str) -> Catalogue:
    """Read a text, and compare it with what was counted under earlier ones; CatalogueInvalid names every problem."""
    found = parse(text, name)
    scales = {metric: one.scale for metric, one in (await metrics.known(tx)).items()}
    problems = rescaled(found, text, name, scales)
    if problems:
        raise CatalogueInvalid(problems)
    return found


def summary(catalogue: Catalogue) -> dict[str, Any]:
    """What people want to see of a version without reading its text."""
    return {
        "plans": {plan.name: {"title": plan.title, "price": str(plan.price)} for plan in catalogue.plans.values()},
        "metrics": list(catalogue.metrics),
        "routes": len(catalogue.routes),
        "currency": catalogue.currency,
        "default_plan": catalogue.default_plan,
    }
