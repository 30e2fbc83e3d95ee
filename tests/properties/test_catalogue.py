"""Whatever is done to a catalogue file, it is read whole or refused with lines; reading never fails otherwise."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.catalogue.diff import diff
from sidecar.catalogue.load import parse
from sidecar.catalogue.model import Catalogue
from sidecar.catalogue.resolve import resolve
from sidecar.errors import CatalogueInvalid

EXAMPLES = [
    file.read_text("utf-8")
    for file in sorted((Path(__file__).parents[2] / "sidecar" / "catalogue" / "examples").glob("*.yaml"))
]
PROBLEM = re.compile(r"c:[0-9]+: .+; .+", re.DOTALL)


def read(text: str) -> Catalogue | None:
    try:
        return parse(text, "c")
    except CatalogueInvalid as refused:
        problems = refused.problems
    assert problems
    assert all(PROBLEM.fullmatch(problem) for problem in problems)
    return None


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    read(text)


@settings(max_examples=60)
@given(st.sampled_from(EXAMPLES), st.data())
def test_a_damaged_example_is_read_whole_or_refused_by_line(text: str, data: st.DataObject) -> None:
    lines = text.splitlines()
    place = data.draw(st.integers(0, len(lines) - 1))
    damage = data.draw(st.sampled_from(["drop", "double", "key", "value", "empty", "noise"]))
    line = lines[place]
    if damage == "drop":
        lines[place : place + 1] = []
    elif damage == "double":
        lines[place : place + 1] = [line, line]
    elif damage == "key":
        lines[place] = re.sub(r"\w+:", "wrong:", line, count=1)
    elif damage == "value":
        lines[place] = re.sub(r": [\w.]+", f": {data.draw(st.sampled_from(['-1', '[]', '{}', 'null', '1e5']))}", line)
    elif damage == "empty":
        lines[place] = re.sub(r":.*", ":", line)
    else:
        lines[place] = line + data.draw(st.text(max_size=5))
    catalogue = read("\n".join(lines))
    if catalogue is None:
        return
    for plan in catalogue.plans.values():
        for limit in plan.limits:
            metric = catalogue.metrics[limit.metric]
            fed = metric.reported or any(rule.costs.get(limit.metric) for rule in catalogue.routes)
            assert metric.kind == "level" or fed
        resolve(
            catalogue,
            tenant="t",
            rev=1,
            plan=plan.name,
            status="active",
            status_until_s=0,
            parent="",
            anchor_s=0,
            shadow=False,
            overrides={},
        )


@settings(max_examples=20)
@given(st.sampled_from(EXAMPLES), st.sampled_from(EXAMPLES))
def test_a_difference_is_empty_exactly_when_nothing_differs(one: str, other: str) -> None:
    first, second = parse(one, "a"), parse(other, "b")
    assert (diff(first, second) == []) == (first == second)
    assert len(diff(first, second)) >= len(set(first.plans) ^ set(second.plans))


overrides = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["limits", "features", "shadow", "api_calls", "included", "cap", "ceiling", "grace_s", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["limits", "features", "shadow", "x"]), overrides, max_size=4))
def test_any_overrides_are_applied_or_refused_and_can_be_left_out(found: dict[str, object]) -> None:
    catalogue = parse(EXAMPLES[1], "c")
    for strict in (True, False):
        try:
            snapshot = resolve(
                catalogue,
                tenant="t",
                rev=1,
                plan="free",
                status="active",
                status_until_s=0,
                parent="",
                anchor_s=0,
                shadow=False,
                overrides=found,
                strict=strict,
            )
        except CatalogueInvalid:
            assert strict
            continue
        assert all(rule.stop is None or rule.stop >= (rule.included or 0) for rule in snapshot.limits)
