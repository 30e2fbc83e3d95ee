"""The route table: which rule a request falls under.

Guarantees: rules are tried from top to bottom, the first that fits wins; method, host and path are compared in one
            canonical form (see path.py), so no spelling of a target escapes its rule. Where a spelling can be read in
            several ways, the strictest of the rules it may mean applies: if none is as strict as all the others, one
            with the highest cost of each metric and the requirements of all.
Gives up:   memory, for a bounded memo of the targets seen last: a hot target costs one dictionary lookup, and 200
            rules cost no more than ten. A route-scoped limit counts an ambiguous spelling under one rule only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sidecar.catalogue.model import RouteRule
from sidecar.catalogue.path import canonical_path, readings, split_target
from sidecar.catalogue.pattern import (
    PathPattern,
    Segment,
    canonical_host,
    compile_host,
    compile_path,
    host_covers,
    host_matches,
)

__all__ = ["RouteTable", "canonical_path", "shadowed_by"]

MEMO_ENTRIES_MAX = 4_096
MEMO_TARGET_CHARS_MAX = 256


class _Entry:
    """One rule as it is compared: expanded methods, canonical host, and its place in the file."""

    __slots__ = ("host", "methods", "place", "rule")

    def __init__(self, place: int, rule: RouteRule) -> None:
        self.place = place
        self.rule = rule
        self.methods = _methods(rule)
        self.host = compile_host(rule.host) if rule.host else ""

    def takes(self, method: str, host: str) -> bool:
        return (not self.methods or method in self.methods) and host_matches(self.host, host)


class _Node:
    """A place in the tree of patterns: what follows literally, what follows by wildcard, and which rules end here."""

    __slots__ = ("ends", "literals", "rests", "wildcards")

    def __init__(self) -> None:
        self.literals: dict[str, _Node] = {}
        self.wildcards: list[tuple[Segment, _Node]] = []
        self.ends: list[_Entry] = []
        self.rests: list[_Entry] = []

    def child(self, segment: Segment) -> _Node:
        if segment.suffix is None:
            return self.literals.setdefault(segment.prefix, _Node())
        for known, node in self.wildcards:
            if known == segment:
                return node
        node = _Node()
        self.wildcards.append((segment, node))
        return node


class RouteTable:
    """Compiled route rules. The last rule is the default; one without conditions is added when there is none."""

    def __init__(self, routes: tuple[RouteRule, ...]) -> None:
        patterns = [compile_path(rule.path) for rule in routes]
        if not routes or routes[-1].methods or routes[-1].host or patterns[-1] != PathPattern((), rest=True):
            routes = (*routes, RouteRule(name="default"))
            patterns.append(PathPattern((), rest=True))
        self.routes = routes
        self.default = routes[-1]
        self._root = _Node()
        self._hosts_matter = any(rule.host for rule in routes)
        self._strictest_of_all: RouteRule | None = None
        entries = [_Entry(place, rule) for place, rule in enumerate(routes)]
        self._last = entries[-1]
        for entry, pattern in zip(entries, patterns, strict=True):
            node = self._root
            for segment in pattern.segments:
                node = node.child(segment)
            (node.rests if pattern.rest else node.ends).append(entry)
        self._hot: dict[tuple[str, str, str], RouteRule] = {}
        self._cold: dict[tuple[str, str, str], RouteRule] = {}

    def match(self, method: str, host: str, target: str) -> RouteRule:
        """The rule of a request. ``target`` is the raw request target, its bytes as latin-1 characters."""
        path = target.partition("?")[0]
        key = (method, host if self._hosts_matter else "", path)
        rule = self._hot.get(key)
        if rule is None:
            rule = self._cold.get(key) or self._find(method, host, path)
            if len(path) + len(host) <= MEMO_TARGET_CHARS_MAX:
                self._remember(key, rule)
        return rule

    def _remember(self, key: tuple[str, str, str], rule: RouteRule) -> None:
        # Two generations: a flood of targets seen once drops the older one, what is hot is carried over.
        if len(self._hot) >= MEMO_ENTRIES_MAX:
            self._cold = self._hot
            self._hot = {}
        self._hot[key] = rule

    def _find(self, method: str, host: str, target: str) -> RouteRule:
        named_host, path = split_target(target)
        host = canonical_host(host if named_host is None else named_host)
        method = method.upper()
        paths = readings(path)
        if len(paths) == 1:
            return self._first(method, host, paths[0]).rule
        if not paths:
            if self._strictest_of_all is None:
                self._strictest_of_all = strictest(self.routes)
            return self._strictest_of_all
        found = {entry.place: entry.rule for entry in (self._first(method, host, reading) for reading in paths)}
        return strictest([found[place] for place in sorted(found)])

    def _first(self, method: str, host: str, path: str) -> _Entry:
        """The first rule in the file that fits a canonical path; the last one, the default, takes everything."""
        best = self._last
        for entries in self._fitting(path[1:].split("/") if path != "/" else []):
            for entry in entries:
                if best.place < entry.place:
                    break
                if entry.takes(method, host):
                    best = entry
                    break
        return best

    def _fitting(self, segments: list[str]) -> Iterator[list[_Entry]]:
        nodes = [self._root]
        for segment in segments:
            following: list[_Node] = []
            for node in nodes:
                if node.rests:
                    yield node.rests
                literal = node.literals.get(segment)
                if literal is not None:
                    following.append(literal)
                following.extend(child for wildcard, child in node.wildcards if wildcard.matches(segment))
            if not following:
                return
            nodes = following
        for node in nodes:
            yield node.ends
            yield node.rests


def strictest(rules: Iterable[RouteRule]) -> RouteRule:
    """The rule, given in file order, that is as strict as all the others; merged from them when there is none."""
    ordered = list(rules)
    costs: dict[str, int] = {}
    for rule in ordered:
        for metric, cost in rule.costs.items():
            costs[metric] = max(cost, costs.get(metric, 0))
    requires = {feature for rule in ordered for feature in rule.requires}
    headroom = {metric for rule in ordered for metric in rule.headroom}
    for rule in ordered:
        if set(rule.requires) == requires and set(rule.headroom) == headroom and _costs_equal(rule.costs, costs):
            return rule
    closest = max(ordered, key=lambda rule: (len(rule.requires), len(rule.costs), len(rule.headroom)))
    return RouteRule(
        name=closest.name,
        methods=closest.methods,
        host=closest.host,
        path=closest.path,
        costs=costs,
        requires=tuple(sorted(requires)),
        headroom=tuple(sorted(headroom)),
    )


def _costs_equal(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(one.get(metric, 0) == cost for metric, cost in other.items())


def shadowed_by(routes: Iterable[RouteRule]) -> Iterator[tuple[int, tuple[RouteRule, ...]]]:
    """For every rule that nothing can reach: its place, and the earlier rules that take all its requests."""
    earlier: list[tuple[RouteRule, frozenset[str], str, PathPattern]] = []
    for place, rule in enumerate(routes):
        methods, pattern = _methods(rule), compile_path(rule.path)
        host = compile_host(rule.host) if rule.host else ""
        wider = [one for one in earlier if host_covers(one[2], host) and one[3].covers(pattern)]
        whole = [one[0] for one in wider if not one[1]]
        named = frozenset[str]().union(*(one[1] for one in wider))
        if whole:
            yield place, (whole[0],)
        elif methods and methods <= named:
            yield place, tuple(one[0] for one in wider if one[1] & methods)
        earlier.append((rule, methods, host, pattern))


def _methods(rule: RouteRule) -> frozenset[str]:
    """Methods of a rule; empty is every method. HEAD runs the handler of GET, so it falls under the rules of GET."""
    methods = {method.upper() for method in rule.methods}
    if "GET" in methods:
        methods.add("HEAD")
    return frozenset(methods)
