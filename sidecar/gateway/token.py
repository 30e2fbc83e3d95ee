"""One claim of a JWT payload that the gateway has verified.

Takes the payload as base64url JSON (what gateways forward) or a compact JWT, whose middle part is read, with or
without a "Bearer" before it. A claim is looked up by its exact name first, then as a dotted path into nested objects.

Gives up: verification, which is the gateway's; expiry too.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec

COMPACT_PARTS = 3


def claim_of(value: bytes, claim: str) -> str | None:
    """The claim as text, None when it is missing, no text or integer, or the payload cannot be read."""
    word, blank, rest = value.partition(b" ")
    if blank:
        if word.lower() != b"bearer":
            return None
        value = rest.strip(b" ")
    parts = value.split(b".")
    if len(parts) not in {1, COMPACT_PARTS}:
        return None
    payload = _decoded(parts[0] if len(parts) == 1 else parts[1])
    found = _lookup(payload, claim)
    if isinstance(found, bool) or not isinstance(found, str | int):
        return None
    return str(found)


def _decoded(text: bytes) -> Any:
    text = text.rstrip(b"=")
    try:
        raw = base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return msgspec.json.decode(raw)
    except (binascii.Error, ValueError, RecursionError):
        return None


def _lookup(payload: Any, claim: str) -> Any:
    if isinstance(payload, dict) and claim in payload:
        return payload[claim]
    for name in claim.split("."):
        if not isinstance(payload, dict):
            return None
        payload = payload.get(name)
    return payload
