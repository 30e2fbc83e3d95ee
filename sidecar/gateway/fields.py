"""Values as header fields: structured-field strings, visible ASCII, names made of token characters.

Guarantees: nothing that comes out can end a header line or a structured-field string, whatever goes in; and
            ``urllib.parse.unquote`` of a value gives back what went in.
"""

from __future__ import annotations

import re
from urllib.parse import quote

INTEGER_MAX = 999_999_999_999_999  # the largest structured-field integer (RFC 9651, 3.3.1)

# Everything visible stands for itself but "%", which begins an escape.
_VISIBLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_VISIBLE_NO_BLANK = _VISIBLE.replace(" ", "")
_NOT_TOKEN = re.compile(r"[^a-z0-9-]+")


def visible(text: str) -> str:
    """A text as a header value: percent-encoded where it does not print, or begins or ends with a blank."""
    return quote(text, safe=_VISIBLE if text == text.strip() else _VISIBLE_NO_BLANK, errors="replace")


def string(text: str) -> str:
    """A structured-field string, quotes included."""
    return '"' + visible(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def integer(number: int) -> int:
    """The nearest integer that a structured field can hold; amounts here are never negative."""
    return min(max(number, 0), INTEGER_MAX)


def name_part(text: str) -> str:
    """A text as part of a header name; underscores and dots become dashes, since many servers drop such headers."""
    return _NOT_TOKEN.sub("-", text.lower()).strip("-") or "-"
