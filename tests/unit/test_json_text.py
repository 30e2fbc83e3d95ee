from __future__ import annotations

import pytest
from msgspec import Struct

from sidecar.billing.webhooks.webhooks import EventRefused, read
from sidecar.errors import JsonInvalid
from sidecar.json_text import decoded

DEEP = b"[" * 2_000


class Named(Struct):
    name: str


def test_a_structure_is_read() -> None:
    assert decoded(b'{"name": "acme", "other": [1]}', Named) == Named("acme")
    assert decoded('{"name": "acme"}', Named) == Named("acme")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"name": 1}', b'{"name": "\xff"}', b'{"other": ' + DEEP])
def test_what_is_none_is_refused_whatever_is_wrong_with_it(text: bytes) -> None:
    with pytest.raises(JsonInvalid):
        decoded(text, Named)


def test_a_value_of_any_kind_may_not_be_nested_without_end() -> None:
    with pytest.raises(JsonInvalid, match="too deeply"):
        decoded(DEEP + b"]" * len(DEEP), list)


def test_an_event_of_stripe_that_is_nested_too_deeply_is_no_event() -> None:
    with pytest.raises(EventRefused, match="no event"):
        read(b'{"id": "evt_1", "type": "x", "data": {"object": {"a": ' + DEEP)
