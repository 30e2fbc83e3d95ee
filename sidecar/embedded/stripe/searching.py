"""The search endpoints, for the one question this program asks: equality of fields and metadata.

Gives up:   comparisons, substrings and negation; the real index is also up to a minute behind, this one is not.
Source: https://docs.stripe.com/search#search-query-language
"""

from __future__ import annotations

import re

from sidecar.embedded.stripe import fields
from sidecar.embedded.stripe.account import Account, Object
from sidecar.embedded.stripe.call import Call
from sidecar.embedded.stripe.errors import bad_parameter
from sidecar.embedded.stripe.fields import Fields, integer, text
from sidecar.embedded.stripe.rendering import paths, render

SEARCH = Fields({"query": text(), "limit": integer(1, 100), "page": text(), **fields.EXPAND}, ["query"])
_QUOTED = r"(?:'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\")"
_CLAUSE = re.compile(rf"(?:metadata\[{_QUOTED}\]|(\w+))\s*:\s*{_QUOTED}")
_AND = re.compile(r"\s+(?:AND\s+)?", re.IGNORECASE)
LIMIT = 10


def search(account: Account, call: Call, kind: str, url: str) -> Object:
    values = SEARCH.read(call.params)
    clauses = _clauses(values["query"])
    found = [
        item
        for item in account.table(kind).values()
        if not item.get("deleted") and all(_matches(item, *clause) for clause in clauses)
    ][::-1]
    start, limit = int(values.get("page", "0")), values.get("limit", LIMIT)
    expand = paths(values.get("expand")).get("data", {})
    more = len(found) > start + limit
    return {
        "object": "search_result",
        "data": [render(account, item, expand) for item in found[start : start + limit]],
        "has_more": more,
        "next_page": str(start + limit) if more else None,
        "url": url,
    }


def _clauses(query: str) -> list[tuple[str, str, str]]:
    clauses, place = [], 0
    query = query.strip()
    while place < len(query):
        found = _CLAUSE.match(query, place)
        if found is None:
            raise bad_parameter(
                f"We were unable to parse your search query at {query[place:]!r}; the stand-in knows "
                "field:'value' and metadata['key']:'value', joined by AND.",
                "query",
            )
        key, value = found[1] or found[2] or "", found[4] or found[5] or ""
        clauses.append((found[3] or "", _unquoted(key), _unquoted(value)))
        gap = _AND.match(query, found.end())
        place = gap.end() if gap else found.end()
    return clauses


def _unquoted(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value)


def _matches(item: Object, field: str, key: str, value: str) -> bool:
    if field:
        actual = item.get(field)
        return (str(actual).lower() if isinstance(actual, bool) else actual) == value
    return bool(item["metadata"].get(key) == value)
