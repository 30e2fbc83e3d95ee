from __future__ import annotations

import re
import string
from urllib.parse import unquote

import httptools
from hypothesis import given
from hypothesis import strategies as st

from sidecar.enforcement.decision import REASONS, Decision, LimitView
from sidecar.gateway import fields
from sidecar.gateway.answers import AnswerWriter

INTEGER_MAX = 10**15 - 1
TEXTS = st.text(max_size=40) | st.text(st.sampled_from('a%\\"\r\n; é'), max_size=12)
AMOUNTS = st.integers(0, 2**53 - 1)
SECONDS = st.integers(0, 2**40)
LIMITS = st.builds(
    LimitView,
    name=TEXTS,
    quota=st.none() | AMOUNTS,
    used=AMOUNTS,
    remaining=AMOUNTS,
    window_s=SECONDS,
    reset_s=SECONDS,
    scale=st.integers(0, 9),
).map(lambda view: view if view.quota is None or view.remaining <= view.quota else _clamped(view, view.quota))
IDS = st.binary(max_size=128).map(lambda raw: re.sub(rb"[^\x21-\x7e\x80-\xff]", b"", raw))


def _clamped(view: LimitView, quota: int) -> LimitView:
    return LimitView(view.name, quota, view.used, quota, view.window_s, view.reset_s, view.scale)


DECISIONS = st.builds(
    Decision,
    allow=st.booleans(),
    status=st.sampled_from([401, 402, 403, 429, 503]),
    reason=st.sampled_from(REASONS),
    quota_status=st.sampled_from(["ok", "near", "over", "grace", "degraded", "shadow", "denied"]),
    tenant=TEXTS,
    plan=TEXTS,
    features=st.lists(st.tuples(TEXTS, TEXTS), max_size=3).map(tuple),
    limit=st.none() | LIMITS,
    violated=st.lists(TEXTS, max_size=10).map(tuple),
    retry_after_s=SECONDS,
    upgrade_url=TEXTS,
)


class StructuredFields:
    """A strict reader of the parts of RFC 9651 that the RateLimit fields use: a list of strings with parameters."""

    def __init__(self, text: str) -> None:
        assert text.isascii()
        self.text = text
        self.at = 0

    def item_list(self) -> list[tuple[str, dict[str, int]]]:
        items = [self.item()]
        while self.at < len(self.text):
            assert self.take() == ","
            self.blanks()
            items.append(self.item())
        return items

    def item(self) -> tuple[str, dict[str, int]]:
        name, parameters = self.quoted(), {}
        while self.at < len(self.text) and self.text[self.at] == ";":
            self.take()
            self.blanks()
            key = self.matched(r"[a-z*][a-z0-9_.*-]*")
            assert self.take() == "="
            parameters[key] = self.integer()
        return name, parameters

    def quoted(self) -> str:
        assert self.take() == '"'
        out = ""
        while (char := self.take()) != '"':
            if char == "\\":
                char = self.take()
                assert char in '"\\'
            assert " " <= char <= "~"
            out += char
        return out

    def integer(self) -> int:
        digits = self.matched(r"-?[0-9]{1,15}")
        assert self.at == len(self.text) or self.text[self.at] not in string.digits + "."
        return int(digits)

    def matched(self, pattern: str) -> str:
        found = re.compile(pattern).match(self.text, self.at)
        assert found, self.text[self.at :]
        self.at = found.end()
        return found[0]

    def blanks(self) -> None:
        self.matched(r" *")

    def take(self) -> str:
        char = self.text[self.at]
        self.at += 1
        return char


class Response:
    """An answer as a strict HTTP parser reads it."""

    def __init__(self, raw: bytes) -> None:
        self.headers: list[tuple[str, str]] = []
        self.body = b""
        self.complete = 0
        parser = httptools.HttpResponseParser(self)
        parser.feed_data(raw)
        self.status = parser.get_status_code()
        assert self.complete == 1

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.decode("ascii").lower(), value.decode("latin-1")))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete += 1

    def one(self, name: str) -> str | None:
        values = [value for known, value in self.headers if known == name]
        assert len(values) <= 1, name
        return values[0] if values else None


def surviving(text: str) -> str:
    """A text as UTF-8 can carry it."""
    return text.encode(errors="replace").decode()


@given(DECISIONS, IDS, st.booleans())
def test_every_answer_is_one_response_with_the_headers_it_was_meant_to_have(
    decision: Decision, request_id: bytes, nginx: bool
) -> None:
    answer = Response(AnswerWriter(lambda: 1_800_000_000).write(decision, request_id, nginx=nginx))
    known = {
        *("content-length", "connection", "content-type", "retry-after", "www-authenticate", "x-request-id"),
        *("ratelimit", "ratelimit-policy", "x-quota-status", "x-quota-tenant", "x-quota-plan"),
        *("x-quota-http-status", "x-quota-problem"),
    }
    assert all(name in known or name.startswith("x-quota-feature-") for name, _ in answer.headers)
    expected = decision.status if not nginx or decision.status == 401 else 403
    assert answer.status == (200 if decision.allow else expected)
    assert answer.one("x-request-id") == (request_id.decode("latin-1") or None)
    if decision.allow and decision.tenant:
        assert unquote(answer.one("x-quota-tenant") or "") == surviving(decision.tenant)
    if decision.allow:
        assert len([name for name, _ in answer.headers if name.startswith("x-quota-feature-")]) == len(
            decision.features
        )


@given(DECISIONS)
def test_rate_limit_fields_are_structured_fields_and_mean_the_limit(decision: Decision) -> None:
    answer = Response(AnswerWriter(lambda: 1_800_000_000).write(decision, b"", nginx=False))
    policy, state = answer.one("ratelimit-policy"), answer.one("ratelimit")
    limit = decision.limit
    if limit is None or limit.quota is None:
        assert policy is state is None
        return
    assert policy is not None
    assert state is not None
    [(name, quota)] = StructuredFields(policy).item_list()
    [(same, left)] = StructuredFields(state).item_list()
    assert unquote(name) == unquote(same) == surviving(limit.name)
    assert quota == {"q": min(limit.quota, INTEGER_MAX)} | ({"w": limit.window_s} if limit.window_s else {})
    assert left.keys() == {"r", "t"}
    if limit.quota <= INTEGER_MAX:
        contended = not decision.allow and decision.reason == "limit_contended"
        assert left["r"] == (0 if contended else limit.remaining)
    wait = answer.one("retry-after")
    if wait is not None and decision.reason in {"limit_reached", "limit_contended"}:
        assert int(wait) >= left["t"]


@given(TEXTS)
def test_a_string_reads_back_as_it_was(text: str) -> None:
    reader = StructuredFields(fields.string(text))
    assert unquote(reader.quoted()) == surviving(text)
    assert reader.at == len(reader.text)


@given(st.integers())
def test_an_integer_has_at_most_fifteen_digits(number: int) -> None:
    reader = StructuredFields(str(fields.integer(number)))
    assert 0 <= reader.integer() <= INTEGER_MAX


@given(TEXTS)
def test_a_visible_value_is_one_line_without_edges(text: str) -> None:
    shown = fields.visible(text)
    assert re.fullmatch(r"[ -~]*", shown)
    assert shown == shown.strip()
    assert unquote(shown) == surviving(text)


@given(TEXTS)
def test_a_name_part_is_a_token_that_servers_keep(text: str) -> None:
    assert re.fullmatch(r"[a-z0-9-]+", fields.name_part(text))
