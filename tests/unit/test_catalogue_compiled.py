"""A checked catalogue on its way to sidecars."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from sidecar.catalogue import compiled
from sidecar.catalogue.load import parse

TESTS = Path(__file__).parents[1]
CATALOGUES = sorted(
    path for path in TESTS.rglob("*.yaml") if path.parent.name in {"e2e", "faults"} and "\nplans:" in path.read_text()
)
PRICED = """
identity: [{header: x-tenant-id}]
currencies: [eur]
metrics: {api_calls: {}, storage_gb: {kind: level, scale: 2, billed_by: max}}
plans:
  pro:
    price: {usd: 49.90, eur: 45.50}
    limits:
      api_calls: {included: 1000, period: billing, cap: soft, overage: {price: {usd: 0.0025, eur: 0.002}, per: 10}}
      storage_gb: {included: 1.25, period: month, cap: soft, grace: 24h}
    features: {llm: large, seats: 3, branding: true}
    forward: [llm]
"""


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.stem)
def test_it_arrives_as_it_was(path: Path) -> None:
    text = path.read_text()
    catalogue = parse(text, path.name)
    assert compiled.decode(compiled.encode(catalogue, text), text) == catalogue


def test_money_and_kinds_of_values_arrive_as_they_were() -> None:
    catalogue = parse(PRICED, "priced")
    found = compiled.decode(compiled.encode(catalogue, PRICED), PRICED)
    assert found == catalogue
    assert repr(found) == repr(catalogue)  # True is not 1


@pytest.mark.parametrize("document", [b"", b"\xc1", msgspec.msgpack.encode(("0", 1)), msgspec.msgpack.encode("text")])
def test_what_cannot_be_read_is_left_to_the_text(document: bytes) -> None:
    assert compiled.decode(document, PRICED) is None


def test_what_is_cut_short_is_left_to_the_text() -> None:
    document = compiled.encode(parse(PRICED, "priced"), PRICED)
    for length in range(len(document)):
        assert compiled.decode(document[:length], PRICED) is None


def test_another_version_s_is_left_to_the_text() -> None:
    version, *rest = msgspec.msgpack.decode(compiled.encode(parse(PRICED, "priced"), PRICED))
    assert compiled.decode(msgspec.msgpack.encode((version + "+1", *rest)), PRICED) is None


def test_that_of_another_text_is_left_to_the_text() -> None:
    """An older flusher replaces the text beside it and knows nothing of it."""
    document = compiled.encode(parse(PRICED, "priced"), PRICED)
    assert compiled.decode(document, PRICED.replace("1000", "2000")) is None
