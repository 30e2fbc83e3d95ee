"""Every key of the catalogue is described, and the examples in its description are good catalogues."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sidecar.catalogue.load import TOP_KEYS, parse
from sidecar.catalogue.load_limits import LIMIT_KEYS
from sidecar.catalogue.load_metrics import IDENTITY_KINDS, METRIC_KEYS
from sidecar.catalogue.load_plans import PLAN_KEYS
from sidecar.catalogue.load_routes import ROUTE_KEYS
from sidecar.catalogue.overrides import LIMIT_OVERRIDE_KEYS

TEXT = (Path(__file__).parents[2] / "docs" / "catalogue.md").read_text("utf-8")
SECTIONS = {part.split("\n", 1)[0]: part for part in TEXT.split("\n## ")}


@pytest.mark.parametrize(
    ("section", "keys"),
    [
        ("Top level", TOP_KEYS),
        ("Metrics", METRIC_KEYS),
        ("Plans", PLAN_KEYS),
        ("Limits", LIMIT_KEYS),
        ("Routes", ROUTE_KEYS),
        ("Identity", IDENTITY_KINDS),
    ],
)
def test_exactly_the_keys_that_exist_are_described(section: str, keys: tuple[str, ...]) -> None:
    described = re.findall(r"^\| `([a-z_]+)` \|", SECTIONS[section], re.MULTILINE)
    assert sorted(described) == sorted(keys)


def test_every_override_is_described() -> None:
    for key in LIMIT_OVERRIDE_KEYS:
        assert f"`{key}`" in SECTIONS["Overrides"]


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL))
def test_the_examples_are_good_catalogues(block: str) -> None:
    assert parse(block, "docs/catalogue.md").plans
