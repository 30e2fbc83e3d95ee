"""The catalogues that the simulation moves between: small caps, so that they are reached.

Those with limits of seconds and minutes are for a part of the seeds. A name is another limit in another plan there.
"""

from __future__ import annotations

from functools import cache

from sidecar.catalogue.compiled import decode
from sidecar.catalogue.load import parse
from sidecar.catalogue.model import Catalogue, RouteRule
from sidecar.catalogue.routes import RouteTable
from sidecar.catalogue.snapshot import LimitRule
from sidecar.ledger import projection
from sidecar.ledger.tenants import TenantRow

_TEXT = """
default_plan: low
identity:
  - header: x-tenant-id
user_header: x-user-id
metrics:
  calls: {{}}
  tokens: {{}}
plans:
  low:
    limits:
      calls_day: {{metric: calls, included: {day}, period: day, cap: hard}}
      calls_month: {{metric: calls, included: {month}, period: month, cap: hard}}
  high:
    limits:
      calls_day: {{metric: calls, included: {high}, period: day, cap: hard}}
      calls_life: {{metric: calls, included: {life}, period: lifetime, cap: hard}}
      tokens: {{metric: tokens, included: {tokens}, period: hour, cap: hard}}
  billed:
    price: 10
    limits:
      calls_billing: {{metric: calls, included: {month}, overage: "0.01", ceiling: {high}}}
      tokens: {{metric: tokens, included: {tokens}, overage: "0.01"}}
  each:
    limits:
      calls_user: {{metric: calls, included: {user}, period: day, cap: hard, scope: user}}
      calls_month: {{metric: calls, included: {month}, period: month, cap: hard}}
  loose:
    limits:
      calls_day: {{metric: calls, included: {day}, period: day, cap: hard, on_outage: {{bounded: 5}}}}
      tokens: {{metric: tokens, included: {tokens}, period: day, cap: hard, on_outage: open}}
routes:
  - name: bulk
    match: /bulk
    costs: {{calls: 7, tokens: 3}}
  - name: talk
    match: /talk
    costs: {{calls: 1, tokens: 5}}
default:
  costs: {{calls: 1}}
"""

PLANS = ("low", "high", "billed", "each", "loose")
TEXTS = (
    _TEXT.format(day=60, month=150, high=200, life=400, tokens=120, user=40),
    _TEXT.format(day=25, month=70, high=90, life=110, tokens=50, user=15),
    _TEXT.format(day=140, month=160, high=300, life=900, tokens=333, user=90),
)
_SMALL = {
    "low": "burst: {{metric: calls, included: {minute}, period: minute, cap: hard}}",
    "high": "burst: {{metric: calls, included: {second}, period: second, cap: hard}}",
    "each": "burst: {{metric: calls, included: {user}, period: minute, cap: hard, scope: user}}",
    "loose": "burst: {{metric: calls, included: {few}, period: minute, cap: hard, on_outage: {{bounded: 5}}}}",
}


def _with_small(text: str, **caps: int) -> str:
    """The same catalogue with limits of seconds and minutes in all plans but one."""
    for plan, limit in _SMALL.items():
        head = f"  {plan}:\n    limits:\n"
        text = text.replace(head, f"{head}      {limit.format(**caps)}\n")
    return text


SMALL_TEXTS = (
    _with_small(
        _TEXT.format(day=300, month=420, high=440, life=900, tokens=900, user=90), minute=23, second=9, user=15, few=39
    ),
    _with_small(
        _TEXT.format(day=90, month=160, high=200, life=260, tokens=300, user=50), minute=15, second=4, user=7, few=21
    ),
    _with_small(
        _TEXT.format(day=700, month=800, high=900, life=1900, tokens=900, user=200),
        minute=400,
        second=47,
        user=300,
        few=240,
    ),
)


@cache
def catalogue(text: str, name: str = "") -> Catalogue:
    """A catalogue, parsed once: YAML would take most of the time."""
    return parse(text, name)


@cache
def decoded(compiled: bytes, text: str) -> Catalogue | None:
    """Stands in for the decoder of compiled catalogues: every worker reads the same few."""
    return decode(compiled, text)


@cache
def limits(text: str, tenant: str, plan: str, parent: str, shard: int) -> tuple[LimitRule, ...]:
    """Those of a tenant on a plan, as the flusher projects them."""
    about = (tenant, plan, "active", 0, parent, 0, 1, False, "put", 1, 0, shard, 0, 0)
    return projection.snapshot(catalogue(text), TenantRow(*about, 1, {})).limits


_compiled: dict[int, tuple[tuple[RouteRule, ...], RouteTable]] = {}  # by the id of routes that are kept beside it


def compiled_routes(routes: tuple[RouteRule, ...]) -> RouteTable:
    """Stands in for the compiler of routes, likewise."""
    found = _compiled.get(id(routes)) or _compiled.setdefault(id(routes), (routes, RouteTable(routes)))
    return found[1]
