"""What a good catalogue means: examples, defaults, short and long forms."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import msgspec
import pytest

from sidecar.catalogue.load import parse, read
from sidecar.catalogue.model import Catalogue, Limit, Overage
from sidecar.catalogue.resolve import resolve
from sidecar.catalogue.routes import RouteTable
from sidecar.catalogue.snapshot import Snapshot

EXAMPLES = sorted((Path(__file__).parents[2] / "sidecar" / "catalogue" / "examples").glob("*.yaml"))
IDENTITY = "identity: [{header: x-tenant-id}]\n"


def limits(text: str, metrics: str = "{api_calls: {}, tokens: {scale: 2, reported: true}}") -> dict[str, Limit]:
    catalogue = parse(f"{IDENTITY}metrics: {metrics}\nplans:\n  p:\n    limits: {{{text}}}\n", "c")
    return {limit.name: limit for limit in catalogue.plans["p"].limits}


def one(text: str) -> Limit:
    return limits(f"api_calls: {text}")["api_calls"]


def example(name: str) -> Catalogue:
    return read(next(file for file in EXAMPLES if file.stem == name))


def enforced(catalogue: Catalogue, plan: str) -> Snapshot:
    return resolve(
        catalogue,
        tenant="t",
        rev=1,
        plan=plan,
        status="active",
        status_until_s=0,
        parent="",
        anchor_s=0,
        shadow=False,
        overrides={},
    )


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_every_example_is_whole_and_survives_the_wire(file: Path) -> None:
    catalogue = read(file)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(catalogue), type=Catalogue) == catalogue
    assert catalogue.identity[0].header == "x-tenant-id"
    assert {rule.header for rule in catalogue.identity if rule.kind == "api_key"} == {"x-api-key", "authorization"}
    for plan in catalogue.plans:
        snapshot = enforced(catalogue, plan)
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(snapshot), type=Snapshot) == snapshot


def test_there_are_five_examples() -> None:
    names = {file.stem for file in EXAMPLES}
    assert names == {"agent_platform", "cloud_hosting", "agent_actions", "chat_widget", "burst_limits"}


def test_the_agent_platform_is_the_one_of_the_reference() -> None:
    catalogue = example("agent_platform")
    assert catalogue.default_plan == "free"
    included = {
        name: [limit.included for limit in plan.limits if limit.metric != "storage_gb"]
        for name, plan in catalogue.plans.items()
    }
    assert included == {
        "free": [10_000, 100, 1_000, 3],
        "standard": [1_000_000, 5_000, 100_000, 25],
        "enterprise": [10_000_000, 50_000, 1_000_000, None],
    }
    assert {limit.cap for limit in catalogue.plans["free"].limits if limit.metric == "api_calls"} == {"soft"}
    assert all(limit.alerts == (80, 100, 120) for plan in catalogue.plans.values() for limit in plan.limits)
    table = RouteTable(catalogue.routes)
    assert table.match("GET", "h", "/v1/anything").costs == {"api_calls": 1}
    assert table.match("POST", "h", "/v1/agents/a1/run").costs == {"api_calls": 1, "agent_executions": 1}
    assert table.match("GET", "h", "/v1/admin/users").requires == ("admin",)
    assert [plan.features["admin"] for plan in catalogue.plans.values()] == [False, False, True]


def test_burst_limits_are_the_agent_platform_with_limits_per_second_and_minute() -> None:
    base, burst = example("agent_platform"), example("burst_limits")
    for name, plan in burst.plans.items():
        added = {limit.name: limit for limit in plan.limits if limit.name.endswith("burst")}
        assert tuple(limit for limit in plan.limits if limit.name not in added) == base.plans[name].limits
        assert (added["burst"].included, added["burst"].period, added["burst"].cap) == (600, "minute", "hard")
        assert (added["run_burst"].scope, added["run_burst"].period) == ("route", "second")
    assert burst.routes == base.routes


def test_cloud_hosting_limits_levels_and_prices_use() -> None:
    catalogue = example("cloud_hosting")
    free = {limit.name: limit for limit in catalogue.plans["free"].limits}
    assert (free["cpu_cores"].included, free["cpu_cores"].cap) == (5, "hard")
    assert free["bandwidth_gb"].included == 10_000_000
    assert free["compute_hours"].overage == Overage(price=Decimal("0.01"), per=10**6)
    assert catalogue.plans["pro"].past_due_grace_days == 7
    assert [rule.name for rule in enforced(catalogue, "enterprise").limits if rule.stop] == []


def test_agent_actions_cost_credits_beyond_the_included_ones() -> None:
    catalogue = example("agent_actions")
    prices = {limit.name: limit.credit_price for limit in catalogue.plans["max"].limits}
    assert prices == {"small": 1, "medium": Decimal("2.5"), "large": 5, "xl": 15}
    assert catalogue.plans["pro"].past_due_plan == "free"
    assert catalogue.top_up is not None
    assert (catalogue.top_up.credits, catalogue.top_up.price) == (Decimal(500), Decimal(20))
    rule = next(rule for rule in enforced(catalogue, "starter").limits if rule.name == "xl")
    assert (rule.included, rule.stop, rule.beyond) == (15, 16, "credits")


def test_chat_widget_hands_features_to_the_upstream() -> None:
    snapshot = enforced(example("chat_widget"), "no such plan")
    assert snapshot.plan == "free"
    assert snapshot.features["llm_provider"] == "small"
    assert snapshot.forward == ("llm_provider", "custom_branding", "tools", "integrations")
    messages = next(rule for rule in enforced(example("chat_widget"), "starter").limits if rule.name == "messages")
    assert messages.stop == 10_000 + 25_000  # 50 dollars at 0.002 each


def test_a_limit_written_short_is_hard_and_of_the_billing_period() -> None:
    limit = one("1_000")
    assert (limit.included, limit.period, limit.cap, limit.on_outage) == (1_000, "billing", "hard", "closed")


def test_null_is_unlimited() -> None:
    assert one("null").included is None
    assert one("{included: ~}").included is None


def test_a_soft_cap_that_says_nothing_has_a_day_of_grace_and_stays_open() -> None:
    limit = one("{included: 5, cap: soft}")
    assert (limit.grace_s, limit.on_outage) == (86_400, "open")


@pytest.mark.parametrize(
    ("text", "cap", "grace_s"),
    [
        ("{included: 5, overage: {price: 1}}", "soft", 0),
        ("{included: 5, overage: 0.5}", "soft", 0),
        ("{included: 5, credits: 1}", "soft", 0),
        ("{included: 5, credits: 1, buffer: 10}", "soft", 86_400),
        ("{included: 5, grace: 0}", "soft", 0),
        ("{included: 5, grace: 1d12h}", "soft", 129_600),
        ("{included: 5, buffer: 10%}", "soft", 86_400),
        ("{included: 5, ceiling: 9}", "soft", 86_400),
        ("{included: 5, cap: hard}", "hard", 0),
    ],
)
def test_what_is_beyond_implies_a_soft_cap(text: str, cap: str, grace_s: int) -> None:
    assert (one(text).cap, one(text).grace_s) == (cap, grace_s)


def test_amounts_and_prices_are_taken_exactly_by_scale() -> None:
    tokens = limits('tokens: {included: "2.5", overage: {price: 0.1, per: 0.5}, ceiling: {spend: 1}}')["tokens"]
    assert (tokens.included, tokens.overage, tokens.ceiling) == (250, Overage(price=Decimal("0.1"), per=50), 750)


def test_an_outage_may_be_bounded_in_units() -> None:
    limit = one("{included: 5, on_outage: {bounded: 3}}")
    assert (limit.on_outage, limit.outage_units) == ("bounded", 3)


def test_a_limit_takes_the_defaults_of_its_plan_and_thresholds_of_the_file() -> None:
    catalogue = parse(
        f"""{IDENTITY}
alerts: [50]
metrics: {{api_calls: }}
plans:
  a: {{period: day, cap: soft, limits: {{api_calls: 5}}}}
  b: {{alerts: [120, 90%], limits: {{api_calls: 5, other: {{metric: api_calls, included: 9, alerts: []}}}}}}
""",
        "c",
    )
    first = catalogue.plans["a"].limits[0]
    assert (first.period, first.cap, first.alerts) == ("day", "soft", (50,))
    assert [limit.alerts for limit in catalogue.plans["b"].limits] == [(90, 120), ()]


@pytest.mark.parametrize(
    ("sections", "costs"),
    [
        ("", {"api_calls": 100}),
        ("default: {costs: {api_calls: 0.5, other: 2}}", {"api_calls": 50, "other": 2}),
        ("default: {requires: [pro]}", {"api_calls": 100}),
        ("default: {costs: {}}", {}),
        ("routes: [{name: all, match: /**, costs: {api_calls: 2}}]", {"api_calls": 200}),
    ],
)
def test_there_is_always_a_default_rule(sections: str, costs: dict[str, int]) -> None:
    metrics = "{api_calls: {scale: 2}, other: }"
    catalogue = parse(f"{IDENTITY}metrics: {metrics}\nplans: {{p: {{features: {{pro: true}}}}}}\n{sections}", "c")
    assert catalogue.routes[-1].costs == costs
    assert len(catalogue.routes) == 1


def test_without_api_calls_the_default_rule_costs_nothing() -> None:
    assert parse(f"{IDENTITY}metrics: {{tokens: }}\nplans: {{p: }}\n", "c").routes[-1].costs == {}


def test_a_rule_without_costs_has_those_of_the_default_and_an_empty_one_is_free() -> None:
    routes = "routes: [{name: a, match: 'GET,POST api.test/a/*'}, {name: b, match: /b, costs: {}}]"
    found = parse(f"{IDENTITY}metrics: {{api_calls: }}\nplans: {{p: }}\n{routes}", "c").routes
    assert [rule.costs for rule in found] == [{"api_calls": 1}, {}, {"api_calls": 1}]
    assert (found[0].methods, found[0].host, found[0].path) == (("GET", "POST"), "api.test", "/a/*")


def test_merge_keys_take_what_is_not_written_again() -> None:
    found = limits("<<: {api_calls: 5, tokens: 1}, api_calls: 7")
    assert (found["api_calls"].included, found["tokens"].included) == (7, 100)


def test_features_keep_their_types() -> None:
    features = 'a: true, b: 5, c: text, d: "true", e: "5", f: "no", g: 007'
    catalogue = parse(f"{IDENTITY}metrics: {{api_calls: }}\nplans: {{p: {{features: {{{features}}}}}}}\n", "c")
    expected = {"a": True, "b": 5, "c": "text", "d": "true", "e": "5", "f": "no", "g": "007"}
    assert msgspec.json.encode(catalogue.plans["p"].features) == msgspec.json.encode(expected)


def test_an_anonymous_plan_may_replace_identity() -> None:
    catalogue = parse("anonymous_plan: p\nmetrics: {api_calls: }\nplans: {p: {interval: 3 months}}\n", "c")
    assert (catalogue.anonymous_plan, catalogue.plans["p"].interval_months) == ("p", 3)


def test_identity_headers_are_compared_in_lower_case_and_authorization_means_bearer() -> None:
    rules = "identity: [{header: X-Tenant}, {api_key: Authorization}, {jwt: X-Claims, claim: org}]\n"
    found = parse(f"{rules}metrics: {{api_calls: }}\nplans: {{p: }}\n", "c").identity
    assert [(rule.header, rule.scheme, rule.claim) for rule in found] == [
        ("x-tenant", "", ""),
        ("authorization", "Bearer", ""),
        ("x-claims", "", "org"),
    ]


def test_a_client_certificate_may_come_in_the_header_of_envoy() -> None:
    text = (
        "metrics: {api_calls: {}}\nplans: {free: {}}\n"
        "identity:\n  - {client_cert: x-forwarded-client-cert, claim: URI}\n"
    )
    (rule,) = parse(text, "c").identity
    assert (rule.kind, rule.header, rule.claim) == ("client_cert", "x-forwarded-client-cert", "URI")
