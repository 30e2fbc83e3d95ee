from __future__ import annotations

import json
from decimal import Decimal
from email.parser import BytesHeaderParser
from typing import Any
from urllib.parse import unquote

import pytest

from sidecar.enforcement.decision import Decision, LimitView
from sidecar.gateway.answers import TEMPLATES_MAX, AnswerWriter, last, refused

NOW_S = 1_800_000_000  # 2027-01-15T08:00:00Z
DAY_S = 86_400
API_CALLS = LimitView("api_calls", 1_000, 900, 100, 30 * DAY_S, 3_600)


class Answer:
    """An answer, taken apart."""

    def __init__(self, raw: bytes) -> None:
        head, _, self.body = raw.partition(b"\r\n\r\n")
        line, _, fields = head.partition(b"\r\n")
        version, status, self.phrase = line.decode().split(" ", 2)
        assert version == "HTTP/1.1"
        self.status = int(status)
        self.headers = {name.lower(): value for name, value in BytesHeaderParser().parsebytes(fields).items()}
        assert len(self.body) == int(self.headers["content-length"])

    def problem(self) -> dict[str, Any]:
        text = self.headers.get("x-quota-problem") or self.body.decode("ascii")
        problem = json.loads(text, parse_float=Decimal)
        assert isinstance(problem, dict)
        return problem


def writer(spread: int = 0) -> AnswerWriter:
    return AnswerWriter(lambda: NOW_S, lambda most: min(spread, most))


def write(decision: Decision, request_id: bytes = b"", *, nginx: bool = False, spread: int = 0) -> Answer:
    return Answer(writer(spread).write(decision, request_id, nginx=nginx))


def allowed(**fields: Any) -> Decision:
    return Decision(**{"allow": True, "status": 200, "reason": "allowed", **fields})


def denied(**fields: Any) -> Decision:
    usual = {"status": 429, "reason": "limit_reached", "quota_status": "denied", "retry_after_s": 60}
    return Decision(**{"allow": False, **usual, **fields})


def test_an_allowed_answer_says_who_and_how_much_is_left() -> None:
    answer = write(
        allowed(tenant="acme", plan="gold", quota_status="near", features=(("llm", "large"),), limit=API_CALLS), b"id-1"
    )
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers == {
        "content-length": "0",
        "connection": "keep-alive",
        "x-quota-status": "near",
        "x-quota-tenant": "acme",
        "x-quota-plan": "gold",
        "x-quota-feature-llm": "large",
        "ratelimit-policy": '"api_calls";q=1000;w=2592000',
        "ratelimit": '"api_calls";r=100;t=3600',
        "x-request-id": "id-1",
    }


@pytest.mark.parametrize("limit", [None, LimitView("api_calls", None, 5, 0, 60, 30)])
def test_without_a_limit_there_are_no_rate_limit_headers(limit: LimitView | None) -> None:
    answer = write(allowed(limit=limit))
    assert answer.headers == {"content-length": "0", "connection": "keep-alive", "x-quota-status": "ok"}


def test_a_prepared_answer_shows_the_numbers_of_each_decision() -> None:
    prepared = writer()
    for remaining in (3, 2, 1, 0):
        limit = LimitView("burst", 5, 5 - remaining, remaining, 60, 10 + remaining)
        answer = Answer(prepared.write(allowed(tenant="t", limit=limit), b"", nginx=False))
        assert answer.headers["ratelimit"] == f'"burst";r={remaining};t={10 + remaining}'


def test_a_prepared_answer_is_not_used_for_other_features_or_quotas() -> None:
    prepared = writer()
    for features in ((("a", "1"),), (("a", "2"),), (), (("a", "1"),)):
        answer = Answer(prepared.write(allowed(tenant="t", features=features), b"", nginx=False))
        assert answer.headers.get("x-quota-feature-a") == (features[0][1] if features else None)
    for quota in (10, 20):
        limit = LimitView("burst", quota, 0, quota, 60, 10)
        answer = Answer(prepared.write(allowed(tenant="t", limit=limit), b"", nginx=False))
        assert answer.headers["ratelimit-policy"] == f'"burst";q={quota};w=60'


def test_prepared_answers_are_bounded() -> None:
    prepared = writer()
    for number in range(TEMPLATES_MAX + 100):
        prepared.write(allowed(tenant=f"t{number}"), b"", nginx=False)
    assert TEMPLATES_MAX * 3 // 4 < len(prepared._templates) <= TEMPLATES_MAX


@pytest.mark.parametrize("text", ["a\r\nx-admin: 1", "é", "100%", " edge ", "%d%s", "a\x00b", "\ud800", 'q"uote\\'])
def test_values_cannot_break_out_of_their_header(text: str) -> None:
    answer = write(allowed(tenant=text, plan=text, features=(("n", text), (text, "v")), limit=API_CALLS))
    expected = text.encode(errors="replace").decode()
    assert unquote(answer.headers["x-quota-tenant"]) == expected
    assert unquote(answer.headers["x-quota-plan"]) == expected
    assert unquote(answer.headers["x-quota-feature-n"]) == expected
    assert "x-admin" not in answer.headers


def test_feature_names_become_header_names_that_servers_keep() -> None:
    answer = write(allowed(features=(("Custom_Branding.v2", "yes"),)))
    assert answer.headers["x-quota-feature-custom-branding-v2"] == "yes"


def test_a_denial_is_a_problem_with_numbers() -> None:
    limit = LimitView("tokens", 1_500, 1_505, 0, 30 * DAY_S, 3_600, 3)
    decision = denied(limit=limit, violated=("tokens", "daily"), upgrade_url="https://x/up", tenant="acme", plan="gold")
    answer = write(decision, b"id-1")
    assert answer.status == 429
    assert answer.problem() == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Quota exceeded",
        "status": 429,
        "detail": 'The limit is used up: 1.505 of 1.5 in "tokens".',
        "reason": "limit_reached",
        "violated-policies": ["tokens", "daily"],
        "limit": Decimal("1.5"),
        "used": Decimal("1.505"),
        "reset": "2027-01-15T09:00:00Z",
        "upgrade-url": "https://x/up",
        "request-id": "id-1",
    }
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-quota-status"] == "denied"
    assert answer.headers["ratelimit"] == '"tokens";r=0;t=3600'
    assert answer.headers["x-request-id"] == "id-1"
    assert "x-quota-tenant" not in answer.headers
    assert "x-quota-plan" not in answer.headers


def test_nginx_gets_the_whole_denial_in_headers() -> None:
    limit = LimitView("größe", 10, 10, 0, 60, 20)
    decision = denied(limit=limit, violated=("größe", "😀"), retry_after_s=20)
    answer, elsewhere = write(decision, b"id-1", nginx=True), write(decision, b"id-1")
    assert (answer.status, answer.body) == (403, b"")
    assert answer.headers["x-quota-http-status"] == "429"
    assert answer.headers["x-quota-problem"] == elsewhere.body.decode("ascii")
    assert answer.problem()["violated-policies"] == ["größe", "😀"]
    for name in ("retry-after", "ratelimit", "ratelimit-policy", "x-quota-status", "x-request-id"):
        assert answer.headers[name] == elsewhere.headers[name]


def test_a_denial_fits_the_buffers_of_a_gateway_whatever_the_names() -> None:
    long = "ü" * 5_000
    limit = LimitView("n" * 128, 2**53, 2**53, 0, 2**40, 2**39)
    decision = denied(limit=limit, violated=(long,) * 50, upgrade_url="u" * 5_000)
    raw = writer().write(decision, b"\xff" * 128, nginx=True)
    assert len(raw) < 12_000
    assert b"u" * 5_000 not in raw


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (401, "identity_missing", "about:blank"),
        (402, "payment_required", "about:blank"),
        (403, "feature_missing", "about:blank"),
        (429, "grace_over", "https://iana.org/assignments/http-problem-types#quota-exceeded"),
        (503, "store_unavailable", "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"),
    ],
)
def test_every_denial_has_its_problem_type(status: int, reason: str, kind: str) -> None:
    answer = write(denied(status=status, reason=reason, retry_after_s=0))
    problem = answer.problem()
    assert (answer.status, problem["status"], problem["type"], problem["reason"]) == (status, status, kind, reason)
    assert problem["detail"]
    assert ("www-authenticate" in answer.headers) == (status == 401)
    assert "retry-after" not in answer.headers


def test_retry_after_is_not_before_the_reset_and_spread_for_long_windows() -> None:
    month = LimitView("m", 10, 10, 0, 30 * DAY_S, 40_000)
    assert write(denied(limit=month, retry_after_s=10)).headers["retry-after"] == "40000"
    assert write(denied(limit=month, retry_after_s=40_000), spread=10**9).headers["retry-after"] == "40900"
    soon = LimitView("m", 10, 10, 0, 30 * DAY_S, 5)
    assert write(denied(limit=soon, retry_after_s=5), spread=10**9).headers["retry-after"] == "65"
    hour = LimitView("h", 10, 10, 0, 3_600, 1_000)
    assert write(denied(limit=hour, retry_after_s=1_000), spread=10**9).headers["retry-after"] == "1000"


def test_the_spread_is_really_random() -> None:
    month = LimitView("m", 10, 10, 0, 30 * DAY_S, 40_000)
    answers = AnswerWriter(lambda: NOW_S)
    waits = {Answer(answers.write(denied(limit=month), b"", nginx=False)).headers["retry-after"] for _ in range(100)}
    assert len(waits) > 10
    assert all(40_000 <= int(wait) <= 40_900 for wait in waits)


def test_units_held_elsewhere_may_be_asked_for_at_once() -> None:
    month = LimitView("m", 10, 4, 6, 30 * DAY_S, 40_000)
    answer = write(denied(reason="limit_contended", limit=month, retry_after_s=1), spread=10**9)
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["ratelimit"] == '"m";r=0;t=1', "what others hold cannot be had now"


def test_a_cost_above_the_whole_limit_is_named_and_nobody_is_asked_to_wait() -> None:
    limit = LimitView("credits", 50, 0, 50, 30 * DAY_S, 40_000, 1, 80)
    answer = write(denied(reason="cost_too_large", limit=limit, retry_after_s=0))
    assert answer.status == 429
    assert "retry-after" not in answer.headers
    assert answer.problem()["detail"] == 'The request costs 8, more than the limit of 5 in "credits".'


def test_a_lifetime_limit_never_resets_in_the_body() -> None:
    lifetime = LimitView("once", 10, 10, 0, 2**40, 2**40 - NOW_S)
    assert "reset" not in write(denied(limit=lifetime)).problem()


def test_the_last_answer_of_a_connection_says_so_once() -> None:
    raw = writer().write(allowed(tenant="Connection: keep-alive"), b"", nginx=False)
    answer = Answer(last(raw))
    assert answer.headers["connection"] == "close"
    assert answer.headers["x-quota-tenant"] == "Connection: keep-alive"


def test_a_refusal_is_a_problem_too() -> None:
    answer = Answer(refused(431, 'too "large"\r\n'))
    assert answer.status == 431
    assert answer.problem()["detail"] == 'too "large"\r\n'
    at_nginx = Answer(refused(400, "wrong", nginx=True))
    assert (at_nginx.status, at_nginx.headers["x-quota-http-status"]) == (403, "400")
