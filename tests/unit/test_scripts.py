"""Scripts as they are loaded: with what they use of the prelude, and constants in place of their names."""

from __future__ import annotations

import re

import pytest

from sidecar.store.scripts import ALONE, NAMES, assembled, load

SHARED = """\
local HOUR_MS = 3600000
local DAY_MS = 24 * HOUR_MS -- of UTC
local now = 5

local function inner(hours)
  return hours * HOUR_MS
end

-- inner is not outer.
local function outer(days)
  return inner(days * DAY_MS)
end

local function unused()
  return outer(1)
end
"""


def test_a_script_has_the_functions_that_it_uses_and_those_that_they_use() -> None:
    text = assembled(SHARED, "return outer(2)")
    assert "function inner" in text
    assert "function outer" in text
    assert "function unused" not in text


def test_a_comment_uses_nothing() -> None:
    assert "function" not in assembled(SHARED, "return now -- and not outer(2)")


def test_constants_are_in_place_of_their_names() -> None:
    text = assembled(SHARED, "local MOST = 2\nreturn inner(MOST) + DAY_MS")
    assert text.endswith("return inner((2)) + (24 * (3600000))")
    assert "MOST" not in text
    assert "return hours * (3600000)" in text


@pytest.mark.parametrize("name", sorted(set(NAMES) - ALONE))
def test_every_script_uses_what_it_has(name: str) -> None:
    text = re.sub(r"--.*", "", load()[name].text)
    for function in re.findall(r"^local function (\w+)", text, re.MULTILINE):
        assert len(re.findall(rf"\b{function}\b", text)) > 1, function
