"""One field of a client certificate that the gateway has verified.

Takes Envoy's ``x-forwarded-client-cert`` (XFCC): elements of ``Key=value`` pairs, values quoted where needed. A field
is Subject, URI, Hash, DNS, ... or CN, the common name inside Subject. Without a field the whole header is the value,
which suits gateways that send a fingerprint or a serial number of their own (nginx: $ssl_client_fingerprint).

Guarantees: several elements, or a field with several values, name nobody: all but the last element may be written by
            the client. Envoy's ``forward_client_cert_details: SANITIZE_SET`` sends exactly one.
"""

from __future__ import annotations

import re

XFCC = "x-forwarded-client-cert"

_PAIR = re.compile(r'([A-Za-z]+)=("(?:[^"\\]|\\.)*"|[^",;]*)(?:;|$)')
_ATTRIBUTE = re.compile(r"(?:[^,+\\]|\\.)+")
_ESCAPED = re.compile(r"\\([^0-9A-Fa-f])")


def field_of(value: bytes, field: str) -> str | None:
    """The field's only value, None when there is none, or more than one, or the header cannot be read."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    if not field:
        return text
    wanted = "subject" if field.upper() == "CN" else field.lower()
    found: set[str] = set()
    at = 0
    while at < len(text):
        pair = _PAIR.match(text, at)
        if pair is None:
            return None
        if pair[1].lower() == wanted:
            found.add(_unquoted(pair[2]))
        at = pair.end()
    if len(found) != 1:
        return None
    only = found.pop()
    return _common_name(only) if field.upper() == "CN" else only


def _unquoted(text: str) -> str:
    return text[1:-1].replace('\\"', '"') if text.startswith('"') else text


def _common_name(subject: str) -> str | None:
    """CN of a subject in the form of RFC 2253; escaped separators belong to the attribute that they are in."""
    names = [
        value.strip()
        for attribute, _, value in (part.partition("=") for part in _ATTRIBUTE.findall(subject))
        if attribute.strip().upper() == "CN"
    ]
    if len(names) != 1:
        return None
    name = _ESCAPED.sub(r"\1", names[0])
    return None if names[0].startswith('"') or "\\" in _ESCAPED.sub("", names[0]) else name
