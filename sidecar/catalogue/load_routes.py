"""The sections ``routes`` and ``default`` of a catalogue file, and the rules that nothing can reach."""

from __future__ import annotations

import re

from sidecar.catalogue.model import Metric, RouteRule
from sidecar.catalogue.pattern import PathPattern, compile_host, compile_path
from sidecar.catalogue.routes import shadowed_by
from sidecar.catalogue.scalars import amount, name_of
from sidecar.catalogue.yaml_reader import Reader, Value

DEFAULT_NAME = "default"
DEFAULT_METRIC = "api_calls"
EFFECT_KEYS = ("costs", "requires", "headroom")
ROUTE_KEYS = ("name", "match", *EFFECT_KEYS)
ROUTES_MAX = 1_000  # finding what is shadowed compares each rule with each
_METHOD = re.compile(r"[A-Z][A-Z-]{0,31}")
_EVERYTHING = PathPattern((), rest=True)


def route_names(reader: Reader, section: Value | None) -> tuple[str, ...]:
    """The names of all rules, for sections that refer to them; the default rule is last."""
    silent = Reader(reader.name)
    names = [silent.mapping(item).get("name") for item in silent.items(section)]
    return (*(name.scalar for name in names if name and name.scalar), DEFAULT_NAME)


def read_routes(
    reader: Reader, section: Value | None, default: Value | None, metrics: dict[str, Metric], features: set[str]
) -> tuple[RouteRule, ...]:
    """All route rules, the default rule last."""
    fallback = _default_rule(reader, default, metrics, features)
    rules: list[RouteRule] = []
    places: list[Value] = []
    names: dict[str, int] = {DEFAULT_NAME: default.line if default else 0}
    items = reader.items(section)
    if len(items) > ROUTES_MAX and section is not None:
        reader.problem(section, f"has {len(items)} rules", f"at most {ROUTES_MAX}")
        items = items[:ROUTES_MAX]
    for item in items:
        keys = reader.section(item, ROUTE_KEYS)
        name = _name(reader, item, keys, names)
        rule = _match(reader, item, keys, name)
        if rule is None:
            continue
        costs, requires, headroom = _effects(reader, keys, metrics, features, fallback)
        rules.append(
            RouteRule(
                name=name,
                methods=rule.methods,
                host=rule.host,
                path=rule.path,
                costs=costs,
                requires=requires,
                headroom=headroom,
            )
        )
        places.append(keys["match"])
    for place, takers in shadowed_by(rules):
        reader.problem(
            places[place],
            f'nothing can match "{rules[place].name}", {_listed(takers)} above takes all its requests',
            "move it up, or remove it",
        )
    if any(not rule.methods and not rule.host and compile_path(rule.path) == _EVERYTHING for rule in rules):
        if default is not None:
            reader.problem(default, 'a rule of "routes" takes every request already', "remove one of the two")
        return tuple(rules)
    return (*rules, fallback)


def _listed(rules: tuple[RouteRule, ...]) -> str:
    return " and ".join(f'"{rule.name}"' for rule in rules)


def _name(reader: Reader, item: Value, keys: dict[str, Value], names: dict[str, int]) -> str:
    name = reader.text(keys.get("name"))
    if not name:
        reader.problem(item, "the rule has no name", 'name it, like "name: chat"; limits and reports refer to it')
        return name
    name_of(reader, keys["name"], name, "route")
    if name == DEFAULT_NAME:
        reader.problem(keys["name"], f'"{name}" is the rule for everything else', 'write it as section "default:"')
    elif name in names:
        reader.problem(keys["name"], f'there is a route "{name}" already, in line {names[name]}', "take another name")
    names.setdefault(name, keys["name"].line)
    return name


def _match(reader: Reader, item: Value, keys: dict[str, Value], name: str) -> RouteRule | None:
    """``[METHOD[,METHOD...] ][host]/path`` as a rule without effects; None when it is none, which is noted."""
    value = keys.get("match")
    if value is None:
        reader.problem(item, "the rule does not say what it matches", 'add it, like "match: POST /v1/chat/**"')
        return None
    words = reader.text(value).split()
    if not words:
        return None
    pattern = words.pop()
    if len(words) > 1:
        reader.problem(
            value, f'has {len(words)} words before "{pattern}"', f'write methods as "{",".join(words)} {pattern}"'
        )
        return None
    if "/" not in pattern:
        right = f'"/{pattern}" is a path, "{pattern}/**" a whole host, "{pattern} /**" all paths of a method'
        reader.problem(value, f'"{pattern}" has no path', right)
        return None
    methods = tuple(method for word in words for method in word.split(",") if method)
    for method in methods:
        if not _METHOD.fullmatch(method):
            reader.problem(value, f'"{method}" is no method', 'write "GET /path", "GET,POST /path" or "/path" for all')
    host, slash, path = pattern.partition("/")
    try:
        compile_path(slash + path)
        host = compile_host(host) if host else ""
    except ValueError as error:
        wrong, _, right = str(error).partition("; ")
        reader.problem(value, wrong, right or 'write it like "POST /v1/chat/**" or "api.example.com/v1/*"')
        return None
    return RouteRule(name=name, methods=tuple(dict.fromkeys(methods)), host=host, path=slash + path)


def _default_rule(reader: Reader, default: Value | None, metrics: dict[str, Metric], features: set[str]) -> RouteRule:
    """The rule for every other request; it costs one of ``api_calls``, where there is such a metric, unless it says."""
    costs: dict[str, int] = {}
    if DEFAULT_METRIC in metrics:
        costs[DEFAULT_METRIC] = 10 ** metrics[DEFAULT_METRIC].scale
    usual = RouteRule(name=DEFAULT_NAME, costs=costs)
    if default is None:
        return usual
    costs, requires, headroom = _effects(reader, reader.section(default, EFFECT_KEYS), metrics, features, usual)
    return RouteRule(name=DEFAULT_NAME, costs=costs, requires=requires, headroom=headroom)


def _effects(
    reader: Reader, keys: dict[str, Value], metrics: dict[str, Metric], features: set[str], fallback: RouteRule
) -> tuple[dict[str, int], tuple[str, ...], tuple[str, ...]]:
    """Costs, required features and metrics that need headroom. A rule that says no costs has those of the default."""
    costs = dict(fallback.costs)
    if "costs" in keys:
        costs = {}
        for metric, value in reader.mapping(keys["costs"]).items():
            if metric in metrics:
                costs[metric] = amount(reader, value, metrics[metric].scale)
            else:
                reader.unknown(value, "metric", metric, metrics)
    requires = reader.texts(keys.get("requires"))
    for value, feature in requires:
        if feature not in features:
            reader.unknown(value, "feature", feature, sorted(features))
    headroom = reader.texts(keys.get("headroom"))
    for value, metric in headroom:
        if metric not in metrics:
            reader.unknown(value, "metric", metric, metrics)
    return costs, tuple(feature for _, feature in requires), tuple(metric for _, metric in headroom)
