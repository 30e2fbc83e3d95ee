"""The difference of two catalogues, as people read it."""

from __future__ import annotations

from sidecar.catalogue.diff import diff
from sidecar.catalogue.load import parse

OLD = """
identity: [{header: x-tenant-id}]
metrics: {api_calls: {}, tokens: {scale: 2, reported: true}}
plans:
  free: {price: 0, limits: {api_calls: 1000, tokens: 5}, features: {sso: false}}
  old: {limits: {api_calls: 1}}
routes:
  - {name: chat, match: POST /chat/**, costs: {api_calls: 2, tokens: 0.5}}
  - {name: gone, match: /gone}
  - {name: talk, match: /talk}
"""
NEW = """
identity: [{header: x-tenant-id}, {api_key: x-api-key}]
default_plan: free
metrics: {api_calls: {}, tokens: {scale: 2, reported: true}, seats: {kind: level}}
plans:
  free: {price: 9.50, limits: {api_calls: null, tokens: {included: 7.25, overage: {price: 0.1}}, seats: 3}}
  new: {limits: {api_calls: 1}}
routes:
  - {name: talk, match: /talk}
  - {name: chat, match: POST /chat/**, costs: {api_calls: 2, tokens: 0.75}}
  - {name: fresh, match: GET h.test/fresh, costs: {}}
"""


def test_every_difference_is_a_line() -> None:
    assert diff(parse(OLD, "old"), parse(NEW, "new")) == [
        "+ metric seats",
        "~ plan free: price 0 -> 9.50",
        "~ plan free: features {sso: false} -> {}",
        "~ plan free: limit api_calls: included 1000 -> unlimited",
        "~ plan free: limit tokens: included 5 -> 7.25",
        "~ plan free: limit tokens: cap hard -> soft",
        "~ plan free: limit tokens: overage none -> 0.1 per 1",
        "~ plan free: limit tokens: on_outage closed -> open",
        "+ plan free: limit seats (hard, 3 seats per billing)",
        "- plan old",
        "+ plan new",
        "~ route chat: costs {api_calls: 2, tokens: 0.5} -> {api_calls: 2, tokens: 0.75}",
        "- route gone (/gone, costs {api_calls: 1})",
        "+ route fresh (GET h.test/fresh, costs {})",
        "~ routes: order is now talk, chat, default",
        "~ identity: header x-tenant-id -> header x-tenant-id, api_key x-api-key",
        "~ catalogue: default_plan none -> free",
    ]


def test_prices_in_other_currencies_and_taxes_are_told() -> None:
    old = """
identity: [{header: x-tenant-id}]
metrics: {calls: {reported: true}}
plans: {pro: {price: 9, limits: {calls: {included: 1, overage: 0.5}}}}
"""
    new = old.replace("price: 9,", "price: {usd: 9, eur: 8}, annual_price: {usd: 90, eur: 80},")
    new = new.replace("overage: 0.5", "overage: {price: {usd: 0.5, eur: 0.4}}")
    new += "currencies: [eur]\ntax: {behavior: inclusive, automatic: true}\n"
    before, after = "unspecified, automatic: false", "inclusive, automatic: true"
    taxes = f"~ catalogue: tax {{behavior: {before}, code: none}} -> {{behavior: {after}, code: none}}"
    assert diff(parse(old, "old"), parse(new, "new")) == [
        "~ plan pro: prices {} -> {eur: 8}",
        "~ plan pro: annual_price none -> 90",
        "~ plan pro: annual_prices {} -> {eur: 80}",
        "~ plan pro: limit calls: overage 0.5 per 1 -> 0.5, 0.4 eur per 1",
        "~ catalogue: currencies [] -> [eur]",
        taxes,
    ]


def test_the_same_catalogue_has_no_difference() -> None:
    assert diff(parse(OLD, "a"), parse(OLD, "b")) == []
