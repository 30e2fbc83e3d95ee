"""Things by id, few or many: both are a dictionary in all but the memory."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from sidecar.enforcement.keyed import FEW, Few, Keyed, Many


class Thing(NamedTuple):
    id: int
    value: int


STEP = st.tuples(st.booleans(), st.integers(0, 2 * FEW), st.integers())


@given(st.lists(STEP, max_size=80))
def test_it_has_what_a_dictionary_has_in_its_order(steps: list[tuple[bool, int, int]]) -> None:
    model: dict[int, Thing] = {}
    found: Keyed[Thing] = Few()
    for put, number, value in steps:
        if put:
            model[number] = Thing(number, value)
            found = found.put(model[number])
        else:
            model.pop(number, None)
            found = found.without(number)
        assert list(found.values()) == list(model.values())
        assert len(found) == len(model)
        assert all(found.get(number) == model.get(number) for number in range(2 * FEW))
        assert isinstance(found, Few if len(model) <= FEW // 2 else (Few, Many))
