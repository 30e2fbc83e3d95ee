"""``sidecar stripe import``: customers and subscriptions that an account had before, made those of tenants here.

Guarantees: a tenant keeps the customer it has, and a customer its tenant: where two claims meet, neither is taken, and
            both are told. Run again, it changes nothing. What could not be mapped is told with its reason.
Gives up:   moving subscriptions to the catalogue's own prices: they keep theirs until their plan is changed. Usage is
            billed from the import on.

A customer belongs to the tenant that a mapping names, else to the one in its metadata. A subscription is on the plan
that its prices are of: prices made by setup, prices whose metadata names a ``plan`` (and a ``metric``), and prices that
the mapping names.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct, structs

from sidecar.billing import customers, objects
from sidecar.billing.objects import StripeObject
from sidecar.billing.stripe_api import errors
from sidecar.billing.subscriptions.mirror import Mirror
from sidecar.catalogue.model import Catalogue
from sidecar.errors import Conflict, JsonInvalid, SidecarError, StripeRefused
from sidecar.json_text import decoded
from sidecar.ledger import tenants

ENDED = ("canceled", "incomplete_expired")
COLUMNS = 2
RIVALS_SHOWN_MAX = 3


class MappingInvalid(SidecarError):
    """The mapping file cannot be used; mend the line that is named."""


class AccountMapping(Struct, frozen=True, forbid_unknown_fields=True):
    """Customer id -> tenant, and price id -> plan, or ``plan:metric`` for a metered price."""

    customers: dict[str, str] = {}
    prices: dict[str, str] = {}


class Claim(Struct, frozen=True):
    """A customer at Stripe and the tenant that its metadata names."""

    customer: str
    tenant: str = ""


class Adopted(Struct, frozen=True, kw_only=True):
    """What becomes of one customer. ``known`` was ours before; the rest of the words are what they say."""

    customer: str
    tenant: str
    action: Literal["known", "link", "unmapped", "conflict"]
    reason: str = ""
    creates: bool = False
    subscriptions: tuple[AdoptedSubscription, ...] = ()


class AdoptedSubscription(Struct, frozen=True, kw_only=True):
    """One subscription; without a plan it is kept, and gives its tenant nothing."""

    id: str
    status: str
    plan: str
    reason: str = ""


def mapping_of(text: str, name: str) -> AccountMapping:
    """A mapping file: JSON with ``customers`` and ``prices``, or CSV of ``cus_...,tenant`` and ``price_...,plan``."""
    if text.lstrip().startswith("{"):
        try:
            return decoded(text, AccountMapping)
        except JsonInvalid as error:
            raise MappingInvalid(f"{name}: {error}; write two objects, customers and prices") from error
    found: dict[str, dict[str, str]] = {"cus": {}, "price": {}}
    reader = csv.reader(io.StringIO(text))
    for row in reader:
        cells = [cell.strip() for cell in row]
        if not any(cells) or cells[0].startswith("#"):
            continue
        kind = cells[0].partition("_")[0]
        if len(cells) != COLUMNS or kind not in found or not cells[1]:
            right = "write cus_...,tenant or price_...,plan"
            raise MappingInvalid(f"{name}:{reader.line_num}: {','.join(row)[:80]!r} maps nothing; {right}")
        if cells[0] in found[kind]:
            raise MappingInvalid(f"{name}:{reader.line_num}: {cells[0]} is mapped twice; keep one of them")
        found[kind][cells[0]] = cells[1]
    return AccountMapping(found["cus"], found["price"])


def decide(claims: Sequence[Claim], mapped: Mapping[str, str], linked: Mapping[str, str]) -> list[Adopted]:
    """Whose each customer is. ``linked`` is customer by tenant, as the ledger has it. Pure."""
    owners = {customer: tenant for tenant, customer in linked.items()}
    wanted = {claim.customer: mapped.get(claim.customer, claim.tenant) for claim in claims}
    contenders: dict[str, list[str]] = {}
    for customer, tenant in wanted.items():
        contenders.setdefault(tenant, []).append(customer)
    found = []
    for claim in claims:
        tenant, name = wanted[claim.customer], claim.customer
        # What a mapping says goes before what metadata says.
        chosen = [one for one in contenders[tenant] if one in mapped] or contenders[tenant]
        rivals = [one for one in chosen if one != name]
        row = Adopted(customer=name, tenant=tenant, action="link")
        if name in owners:
            row = structs.replace(row, tenant=owners[name], action="known")
            if tenant not in ("", owners[name]):
                reason = f"it belongs to {owners[name]!r} here, and {tenant!r} claims it; mend what claims it"
                row = structs.replace(row, action="conflict", reason=reason)
        elif not tenant:
            reason = "neither its metadata nor the mapping names a tenant"
            row = structs.replace(row, action="unmapped", reason=reason)
        elif claim.tenant not in ("", tenant):
            reason = f"its metadata names {claim.tenant!r}, the mapping {tenant!r}; mend one of them"
            row = structs.replace(row, action="conflict", reason=reason)
        elif tenant in linked:
            reason = f"{tenant!r} has the customer {linked[tenant]}"
            row = structs.replace(row, action="conflict", reason=reason)
        elif rivals:
            reason = f"{', '.join(rivals[:RIVALS_SHOWN_MAX])} claims {tenant!r} too; choose one in a mapping"
            row = structs.replace(row, action="conflict", reason=reason)
        found.append(row)
    return found


def plan_of(subscription: Mapping[str, Any], ours: Mapping[str, StripeObject]) -> str:
    """The plan whose prices a subscription has; empty when they are of none, or of several."""
    plans = set()
    for item in (subscription.get("items") or {}).get("data") or ():
        price = item["price"]
        known = ours.get(price["id"])
        plans.add(known.plan if known is not None else str((price.get("metadata") or {}).get("plan") or ""))
    plans.discard("")
    return plans.pop() if len(plans) == 1 else ""


async def adopt_account(
    mirror: Mirror, catalogue: Catalogue, mapping: AccountMapping, *, actor: str, dry_run: bool = False
) -> list[Adopted]:
    """Go through the whole account; what became, or with ``dry_run`` would become, of each customer."""
    _check_prices(catalogue, mapping)
    with errors():
        page = await mirror.api.v1.customers.list_async({"limit": 100})
        claims = [
            Claim(one.id, str((one.to_dict().get("metadata") or {}).get(customers.TENANT_KEY) or ""))
            async for one in page.auto_paging_iter()
        ]
    silent = await _silent_prices(mirror, mapping)
    mapping = structs.replace(mapping, prices={id_: to for id_, to in mapping.prices.items() if id_ not in silent})
    async with mirror.ledger.transaction() as tx:
        linked = {row["tenant"]: row["customer"] for row in await tx.rows("linked_customers")}
        if not dry_run:
            await objects.remember(tx, _mapped_prices(mapping))
    rows = decide(claims, mapping.customers, linked)
    strangers = sorted(mapping.customers.keys() - {claim.customer for claim in claims})
    rows += [
        Adopted(customer=name, tenant=mapping.customers[name], action="unmapped", reason="there is no such customer")
        for name in strangers
    ]
    return [
        await _adopted(mirror, catalogue, mapping, row, silent=silent, actor=actor, dry_run=dry_run) for row in rows
    ]


async def _adopted(
    mirror: Mirror,
    catalogue: Catalogue,
    mapping: AccountMapping,
    row: Adopted,
    *,
    silent: Mapping[str, str],
    actor: str,
    dry_run: bool,
) -> Adopted:
    if row.action not in ("known", "link"):
        return row
    found = await _subscriptions(mirror, mapping, row.customer, catalogue, silent)
    row = structs.replace(row, subscriptions=tuple(found))
    plan = next((one.plan for one in found if one.plan and one.status not in ENDED), catalogue.default_plan)
    async with mirror.ledger.transaction() as tx:
        exists = bool(await tenants.by_ids(tx, [row.tenant]))
        if not exists and not plan:
            reason = f"there is no tenant {row.tenant!r} and no plan to put it on; run `sidecar tenant put` first"
            return structs.replace(row, action="unmapped", reason=reason)
        if not exists and not dry_run:
            await tenants.put(tx, row.tenant, plan=plan, actor=actor)
    row = structs.replace(row, creates=not exists)
    if not dry_run:
        if row.action == "link":
            try:
                async with customers.one_change(mirror.ledger, row.tenant):
                    await customers.adopt(mirror.ledger, mirror.api, row.tenant, row.customer, actor=actor)
            except Conflict as error:
                return structs.replace(row, action="conflict", reason=str(error))
        await mirror.adopt_subscriptions(row.customer)
    return row


async def _subscriptions(
    mirror: Mirror, mapping: AccountMapping, customer: str, catalogue: Catalogue, silent: Mapping[str, str]
) -> list[AdoptedSubscription]:
    with errors():
        page = await mirror.api.v1.subscriptions.list_async({"customer": customer, "status": "all", "limit": 100})
        raw = [one.to_dict() async for one in page.auto_paging_iter()]
    ids = {item["price"]["id"] for one in raw for item in (one.get("items") or {}).get("data") or ()}
    async with mirror.ledger.transaction() as tx:
        ours = {item.id: item for item in _mapped_prices(mapping)} | await objects.by_ids(tx, ids)
        meters = {meter.id: meter.metric for meter in (await objects.objects(tx, "meter")).values()}
    found = []
    for one in raw:
        plan = plan_of(one, ours)
        reason = "" if plan else "none of its prices belongs to a plan, or they belong to several; map its prices"
        if plan and plan not in catalogue.plans:
            plan, reason = "", f"the catalogue has no plan {plan!r}"
        prices = [item["price"] for item in (one.get("items") or {}).get("data") or ()]
        unheard = [silent.get(price["id"]) or _silent(price, meters, _metric(price, ours)) for price in prices]
        reason = "; ".join(filter(None, [reason, *unheard]))
        found.append(AdoptedSubscription(id=one["id"], status=one["status"], plan=plan, reason=reason))
    return found


def _check_prices(catalogue: Catalogue, mapping: AccountMapping) -> None:
    for price, target in mapping.prices.items():
        plan, _, metric = target.partition(":")
        if plan not in catalogue.plans:
            raise MappingInvalid(f"{price} is mapped to the plan {plan!r}; there are {', '.join(catalogue.plans)}")
        if metric and metric not in catalogue.metrics:
            raise MappingInvalid(
                f"{price} is mapped to the metric {metric!r}; there are {', '.join(catalogue.metrics)}"
            )


async def _silent_prices(mirror: Mirror, mapping: AccountMapping) -> dict[str, str]:
    """Mapped prices that would bill usage sent from here as nothing, and why; they are not taken for a metric's."""
    async with mirror.ledger.transaction() as tx:
        meters = {meter.id: meter.metric for meter in (await objects.objects(tx, "meter")).values()}
    found = {}
    for price, target in mapping.prices.items():
        try:
            with errors():
                raw = (await mirror.api.v1.prices.retrieve_async(price)).to_dict()
        except StripeRefused as error:
            if error.status != customers.NOT_FOUND:
                raise
            continue
        _, _, metric = target.partition(":")
        if why := _silent(raw, meters, metric):
            found[price] = why
    return found


def _metric(price: Mapping[str, Any], ours: Mapping[str, StripeObject]) -> str:
    known = ours.get(price["id"])
    return known.metric if known is not None else str((price.get("metadata") or {}).get("metric") or "")


def _silent(price: Mapping[str, Any], meters: Mapping[str, str], metric: str = "") -> str:
    """Why a price bills nothing of what is sent from here: it listens to no meter of ours, or to another metric's."""
    recurring = price.get("recurring") or {}
    if recurring.get("usage_type") != "metered":
        return ""
    meter = str(recurring.get("meter") or "")
    if meter in meters and metric in ("", meters[meter]):
        return ""
    heard = f"the meter {meter}" if meter else "usage records"
    return f"the price {price['id']} is not mapped: it bills {heard}, which is not sent from here; change its plan"


def _mapped_prices(mapping: AccountMapping) -> Iterable[StripeObject]:
    for price, target in mapping.prices.items():
        plan, _, metric = target.partition(":")
        name = objects.usage_price(plan, metric) if metric else objects.base_price(plan)
        yield StripeObject(id=price, kind="price", name=name, plan=plan, metric=metric, current=False)
