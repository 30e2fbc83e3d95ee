"""What has to be done at Stripe so that it has what a catalogue offers: the difference, as a list of changes.

Guarantees: nothing here talks to anybody; the same offer and account give the same list, and once it was applied the
            next list has nothing to do. A price whose terms changed is replaced by a new one, since terms of a price
            never change; the old one is archived and goes on for those who subscribed to it. What cannot be done is
            a refusal with its reason, and then nothing at all is done.
Gives up:   removing what the catalogue no longer names: it is listed as unused and left alone.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Literal

from msgspec import Struct, structs

from sidecar.billing import objects
from sidecar.billing.shop.offer import Offer, Terms, Tier, WantedMeter, WantedPrice, WantedProduct

Action = Literal["keep", "create", "update", "replace", "archive", "unused", "refuse"]
Wanted = WantedMeter | WantedProduct | WantedPrice
EFFECTS: tuple[Action, ...] = ("create", "update", "replace", "archive")


class FoundMeter(Struct, frozen=True, kw_only=True):
    """A meter at Stripe; ``settings`` is what can never be changed: formula, customer key, value key."""

    id: str
    event_name: str
    title: str
    active: bool
    settings: tuple[str, str, str]


class FoundProduct(Struct, frozen=True, kw_only=True):
    """A product at Stripe that carries one of our names."""

    id: str
    name: str
    title: str
    active: bool
    unit_label: str
    tax_code: str
    metadata: dict[str, str]


class FoundPrice(Struct, frozen=True, kw_only=True):
    """A price at Stripe with one of our lookup keys, or of one of our products. ``name`` is what its metadata says."""

    id: str
    lookup_key: str
    name: str
    active: bool
    title: str
    tax_behavior: str
    terms: Terms
    metadata: dict[str, str]


class Account(Struct, frozen=True):
    """What a Stripe account has that could be ours, the oldest of each kind first."""

    meters: tuple[FoundMeter, ...] = ()
    products: tuple[FoundProduct, ...] = ()
    prices: tuple[FoundPrice, ...] = ()


class Change(Struct, frozen=True, kw_only=True):
    """One step. ``id`` is what was found, empty when nothing was; ``reasons`` say why, one difference each.

    A refusal without a name is about the catalogue, which its reason then names the place of.
    """

    action: Action
    kind: objects.Kind
    name: str
    id: str = ""
    reasons: tuple[str, ...] = ()
    wanted: Wanted | None = None


SETTINGS = ("sum", "stripe_customer_id", "value")


def changes(offer: Offer, account: Account, in_use: Container[str] = ()) -> list[Change]:
    """Everything to do, in an order in which it can be done: meters, products, then prices that name both.

    A price that was replaced is archived once no subscription is left with it (``in_use``): Stripe takes an archived
    one in no schedule, so nothing of such a subscription could be changed at the end of its period.
    """
    return [
        *(Change(action="refuse", kind="price", name="", reasons=(problem,)) for problem in offer.problems),
        *(_meter(wanted, account) for wanted in offer.meters),
        *(_product(wanted, account) for wanted in offer.products),
        *(
            change
            for wanted in offer.prices
            for change in _price(wanted, account)
            if change.action != "archive" or change.id not in in_use
        ),
        *_unused(offer, account),
    ]


def refused(steps: list[Change]) -> list[str]:
    """Why nothing can be done; empty when all can."""
    return [
        f"{step.kind} {step.name}: {reason}" if step.name else reason
        for step in steps
        if step.action == "refuse"
        for reason in step.reasons
    ]


def metadata(wanted: WantedProduct | WantedPrice) -> dict[str, str]:
    """What marks an object as ours, and tells people what it is for."""
    marks = {objects.MARK: wanted.name, "plan": wanted.plan, "metric": wanted.metric}
    return {key: value for key, value in marks.items() if value}


def _meter(wanted: WantedMeter, account: Account) -> Change:
    named = [meter for meter in account.meters if meter.event_name == wanted.event_name]
    fits = [meter for meter in named if meter.settings == SETTINGS]
    change = Change(action="create", kind="meter", name=wanted.metric, wanted=wanted)
    for meter in named:
        if meter.active and meter.settings != SETTINGS:
            formula, customer, value = meter.settings
            reason = (
                f"{meter.id} at Stripe takes events named {wanted.event_name} by the formula {formula} of {value} "
                f"for each {customer}, and a meter cannot be changed; deactivate it there, or rename the metric"
            )
            return structs.replace(change, action="refuse", id=meter.id, reasons=(reason,))
    if not fits:
        return change
    found = next((meter for meter in fits if meter.active), fits[-1])
    reasons = _differences(("name", found.title, wanted.title), ("active", found.active, True))
    return structs.replace(change, action="update" if reasons else "keep", id=found.id, reasons=reasons)


def _product(wanted: WantedProduct, account: Account) -> Change:
    change = Change(action="create", kind="product", name=wanted.name, wanted=wanted)
    named = [product for product in account.products if product.name == wanted.name]
    if not named:
        return change
    found = next((product for product in named if product.active), named[0])
    reasons = _differences(
        ("name", found.title, wanted.title),
        ("active", found.active, True),
        ("unit_label", found.unit_label, wanted.unit_label),
        # A tax code that somebody chose at Stripe stays while the catalogue names none.
        ("tax_code", found.tax_code, wanted.tax_code or found.tax_code),
        *_marks(found.metadata, metadata(wanted)),
    )
    return structs.replace(change, action="update" if reasons else "keep", id=found.id, reasons=reasons)


def _price(wanted: WantedPrice, account: Account) -> Iterator[Change]:
    change = Change(action="create", kind="price", name=wanted.name, wanted=wanted)
    keyed = next((price for price in account.prices if price.lookup_key == wanted.lookup_key), None)
    # A replacement that was cut short leaves the old price active, without its key.
    leftover = [price for price in account.prices if price.name == wanted.name and price.active and price != keyed]
    if keyed is None:
        yield change
    elif keyed.active and keyed.terms.currency != wanted.terms.currency:
        reason = (
            f"{keyed.id} is in {keyed.terms.currency}, and who has paid in it cannot pay in {wanted.terms.currency}; "
            "archive that price at Stripe if nobody is subscribed to it, or give the plan another name"
        )
        yield structs.replace(change, action="refuse", id=keyed.id, reasons=(reason,))
        return
    elif reasons := _new_terms(keyed, wanted):
        yield structs.replace(change, action="replace", id=keyed.id, reasons=reasons)
        if keyed.active:
            yield Change(action="archive", kind="price", name=wanted.name, id=keyed.id, reasons=("it is replaced",))
    else:
        reasons = _differences(
            ("name", keyed.title, wanted.title),
            ("active", keyed.active, True),
            ("tax_behavior", keyed.tax_behavior, wanted.tax_behavior),
            *_marks(keyed.metadata, metadata(wanted)),
        )
        yield structs.replace(change, action="update" if reasons else "keep", id=keyed.id, reasons=reasons)
    for price in leftover:
        yield Change(action="archive", kind="price", name=wanted.name, id=price.id, reasons=("it was replaced",))


def _new_terms(found: FoundPrice, wanted: WantedPrice) -> tuple[str, ...]:
    """Why a price cannot stay: what differs and never changes."""
    before, after = found.terms, wanted.terms
    reasons = _differences(
        ("product", before.product, after.product),
        ("currency", before.currency, after.currency),
        ("interval_months", before.interval_months, after.interval_months),
        ("meter", before.meter or "none", after.meter or "none"),
        ("settings", before.strange or "none", "none"),
        *(
            (f"price in {currency}", _told(before.tiers.get(currency)), _told(after.tiers.get(currency)))
            for currency in dict.fromkeys([*before.tiers, *after.tiers])
        ),
    )
    # Only an unspecified tax behavior may be specified later, and that only for a price in one currency.
    fixed = found.tax_behavior != "unspecified" or len(after.tiers) > 1
    return reasons + (_differences(("tax_behavior", found.tax_behavior, wanted.tax_behavior)) if fixed else ())


def _unused(offer: Offer, account: Account) -> Iterator[Change]:
    known = {meter.event_name for meter in offer.meters}
    for meter in account.meters:
        if meter.active and meter.event_name.startswith(f"{objects.PREFIX}_") and meter.event_name not in known:
            name = meter.event_name.removeprefix(f"{objects.PREFIX}_")
            yield Change(action="unused", kind="meter", name=name, id=meter.id, reasons=("no plan bills it",))
    products = {product.name for product in offer.products}
    for product in account.products:
        if product.active and product.name not in products:
            yield Change(
                action="unused", kind="product", name=product.name, id=product.id, reasons=("no plan needs it",)
            )
    prices = {price.name for price in offer.prices}
    for price in account.prices:
        # Of a tenant with an included amount of its own; such prices come and go with overrides.
        if objects.is_own(price.name):
            continue
        if price.active and price.name and price.name not in prices:
            yield Change(action="unused", kind="price", name=price.name, id=price.id, reasons=("no plan has it",))


def _marks(found: dict[str, str], wanted: dict[str, str]) -> Iterator[tuple[str, object, object]]:
    for key, value in wanted.items():
        yield f"metadata {key}", found.get(key, "none"), value


def _differences(*pairs: tuple[str, object, object]) -> tuple[str, ...]:
    return tuple(f"{what} {_word(before)} -> {_word(after)}" for what, before, after in pairs if before != after)


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if value != "" else "none"


def _told(tiers: tuple[Tier, ...] | None) -> str:
    """Tiers for people, in the minor unit."""
    if tiers is None:
        return "none"
    return ", ".join(
        f"{tier.unit_amount.normalize():f}"
        + (f" + {tier.flat_amount.normalize():f} flat" if tier.flat_amount else "")
        + (f" up to {tier.up_to}" if tier.up_to is not None else "")
        for tier in tiers
    )
