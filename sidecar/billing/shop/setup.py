"""``sidecar stripe setup``: what the catalogue offers, compared with the account, changed, and the ids kept.

Guarantees: one setup at a time; a second one changes nothing. Either every change can be made, or none is tried and
            each that cannot is named with its reason. Ids are kept only of a setup that went through; one that was cut
            off is found again by lookup keys, event names and metadata.
Gives up:   moving subscriptions to a new price: who subscribed to the old one keeps it until its plan is changed.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from sidecar.billing import objects
from sidecar.billing.shop import account, applying
from sidecar.billing.shop.difference import EFFECTS, Change, changes, refused
from sidecar.billing.shop.offer import offer
from sidecar.billing.stripe_api import StripeApi
from sidecar.catalogue.model import Catalogue
from sidecar.errors import Conflict
from sidecar.ledger import audit
from sidecar.ledger.transaction import Transaction

TOLD_MOST = 100


class Report(Struct, frozen=True):
    """What a setup did or would do. ``ids`` by kind and name, of what is there now."""

    changes: list[Change]
    ids: dict[objects.Kind, dict[str, str]]
    refused: list[str]

    @property
    def effects(self) -> list[Change]:
        """Those that change something."""
        return [change for change in self.changes if change.action in EFFECTS]


async def difference(tx: Transaction, api: StripeApi, catalogue: Catalogue) -> Report:
    """What a setup would do now."""
    wanted = offer(catalogue)
    found = await account.read(api, [price.lookup_key for price in wanted.prices])
    steps = changes(wanted, found, await objects.prices_in_use(tx))
    return Report(steps, _ids(steps), refused(steps))


async def set_up(
    tx: Transaction,
    api: StripeApi,
    catalogue: Catalogue,
    *,
    pause_s: float = 1,
    told: Callable[[Change], None] | None = None,
    actor: str = "setup",
) -> Report:
    """Make the account offer what the catalogue does; Conflict names every change that cannot be made."""
    if not await tx.value("lock_stripe_setup"):
        raise Conflict("another `sidecar stripe setup` is at work; wait until it is done")
    report = await difference(tx, api, catalogue)
    if report.refused:
        raise Conflict("\n".join(report.refused))
    made = await applying.apply(api, report.changes, pause_s, told)
    # Subscriptions to what the catalogue had before still bill by these meters: their usage goes on being sent.
    meters = [step.id for step in report.changes if step.kind == "meter" and step.action == "unused"]
    await objects.record(tx, made, meters)
    if report.effects:
        done = [f"{step.action} {step.kind} {step.name}" for step in report.effects]
        await audit.write(tx, actor=actor, action="stripe.setup", detail={"changes": done[:TOLD_MOST]})
    ids: dict[objects.Kind, dict[str, str]] = {"meter": {}, "product": {}, "price": {}}
    for item in made:
        ids[item.kind][item.name] = item.id
    return Report(report.changes, ids, [])


def _ids(steps: list[Change]) -> dict[objects.Kind, dict[str, str]]:
    ids: dict[objects.Kind, dict[str, str]] = {"meter": {}, "product": {}, "price": {}}
    for step in steps:
        if step.wanted is not None and step.id:
            ids[step.kind][step.name] = step.id
    return ids
