from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest

from sidecar.catalogue.model import Catalogue, IdentityRule
from sidecar.enforcement.decision import Identity
from sidecar.gateway.certificate import field_of
from sidecar.gateway.headers import FAULT, IDENTITY_FAULT, REQUEST_FAULT, HeaderIndex
from sidecar.gateway.identity import ANONYMOUS, CONFLICT, MEMO_ENTRIES_MAX, Found, IdentityReader
from sidecar.gateway.token import claim_of

HEADER = IdentityRule(kind="header", header="x-tenant-id")
KEY = IdentityRule(kind="api_key", header="authorization", scheme="Bearer")
BARE_KEY = IdentityRule(kind="api_key", header="x-api-key")
TOKEN = IdentityRule(kind="jwt", header="x-jwt-payload", claim="org.id")
CERTIFICATE = IdentityRule(kind="client_cert", header="x-client-fingerprint")


def catalogue(*rules: IdentityRule, user_header: str = "") -> Catalogue:
    return Catalogue(metrics={}, plans={}, routes=(), identity=rules, user_header=user_header)


def identify(*rules: IdentityRule, user_header: str = "", **headers: bytes) -> Identity:
    found = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    return IdentityReader(catalogue(*rules, user_header=user_header)).identify(found)


def read(index: HeaderIndex, *headers: tuple[bytes, bytes]) -> Found:
    """Headers as a connection reads them."""
    found: Found = {}
    for spelling, value in headers:
        name = index.names.get(spelling) or index.canonical(spelling, found)
        if name is not None and name in found:
            index.repeated(name, found)
        elif name is not None:
            found[name] = value
    return found


def payload(claims: Any) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=")


def sha256(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def test_the_first_rule_that_finds_something_wins() -> None:
    assert identify(HEADER, KEY, x_tenant_id=b"acme", authorization=b"Bearer k") == Identity("acme")
    assert identify(KEY, HEADER, x_tenant_id=b"acme", authorization=b"Bearer k") == Identity(key=sha256(b"k"))
    assert identify(HEADER, KEY, authorization=b"Bearer k") == Identity(key=sha256(b"k"))


def test_nothing_found_is_anonymous() -> None:
    assert identify(HEADER, KEY) is ANONYMOUS
    assert identify(HEADER, x_tenant_id=b"") is ANONYMOUS


@pytest.mark.parametrize("value", [b"Bearer k", b"bearer  k", b"BEARER k ", b"Bearer k\t"])
def test_a_key_is_hashed_without_its_scheme(value: bytes) -> None:
    assert identify(KEY, authorization=value) == Identity(key=sha256(b"k"))


@pytest.mark.parametrize("value", [b"Basic k", b"Bearer", b"Bearer ", b"k"])
def test_another_scheme_is_left_to_the_next_rule(value: bytes) -> None:
    assert identify(KEY, BARE_KEY, authorization=value, x_api_key=b"bare") == Identity(key=sha256(b"bare"))
    assert identify(KEY, authorization=value) is ANONYMOUS


@pytest.mark.parametrize(
    "value",
    [
        b"victim, me",
        b"victim,me",
        b"a" * 129,
        b"\xff\xfe",
        b"a\x7fb",
        b"a\tb",
        "a\u202eb".encode(),
        "a\u0085b".encode(),
    ],
)
def test_a_tenant_that_cannot_be_believed_is_a_conflict_and_not_the_next_rule(value: bytes) -> None:
    assert identify(HEADER, BARE_KEY, x_tenant_id=value, x_api_key=b"k") is CONFLICT


def test_tenants_may_have_128_bytes_of_utf8() -> None:
    assert identify(HEADER, x_tenant_id=("é" * 64).encode()) == Identity("é" * 64)
    assert identify(HEADER, x_tenant_id=("é" * 64 + "a").encode()) is CONFLICT


def test_the_user_goes_along_with_whoever_was_found() -> None:
    assert identify(HEADER, user_header="x-user-id", x_tenant_id=b"acme", x_user_id=b"ann") == Identity(
        "acme", None, "ann"
    )
    assert identify(KEY, user_header="x-user-id", authorization=b"Bearer k", x_user_id=b"ann").user == "ann"
    assert identify(HEADER, user_header="x-user-id", x_tenant_id=b"acme", x_user_id=b"") == Identity("acme")
    assert identify(HEADER, user_header="x-user-id", x_tenant_id=b"acme", x_user_id=b"ann,bob") is CONFLICT


def test_a_user_is_not_kept_for_the_next_tenant() -> None:
    reader = IdentityReader(catalogue(HEADER, user_header="x-user-id"))
    assert reader.identify({b"x-tenant-id": b"one", b"x-user-id": b"ann"}) == Identity("one", None, "ann")
    assert reader.identify({b"x-tenant-id": b"two", b"x-user-id": b"ann"}) == Identity("two", None, "ann")
    assert reader.identify({b"x-tenant-id": b"two"}) == Identity("two")


@pytest.mark.parametrize(
    "spelling", [b"X_Tenant_Id", b"x_tenant-id", b"x.tenant.id", b"X-TENANT.ID", b"x_user_id", b"x.api_key"]
)
def test_an_alias_is_a_conflict_alone_or_beside_the_real_header(spelling: bytes) -> None:
    index = HeaderIndex(catalogue(HEADER, BARE_KEY, user_header="x-user-id"))
    assert read(index, (spelling, b"victim"))[FAULT] == IDENTITY_FAULT
    assert read(index, (b"X-Tenant-Id", b"me"), (spelling, b"victim"))[FAULT] == IDENTITY_FAULT
    assert read(index, (spelling, b"victim"), (b"X-Tenant-Id", b"me"))[FAULT] == IDENTITY_FAULT


@pytest.mark.parametrize("second", [b"x-tenant-id", b"X-TENANT-ID", b"X-Tenant-Id"])
def test_a_repeated_identity_header_is_a_conflict_in_any_case(second: bytes) -> None:
    index = HeaderIndex(catalogue(HEADER, KEY))
    assert read(index, (b"x-tenant-id", b"me"), (second, b"me"))[FAULT] == IDENTITY_FAULT


def test_a_repeated_host_is_worse_than_a_conflict() -> None:
    index = HeaderIndex(catalogue(HEADER))
    twice = ((b"Host", b"a"), (b"host", b"b"))
    alias = ((b"x_tenant_id", b"a"),)
    assert read(index, *twice)[FAULT] == REQUEST_FAULT
    assert read(index, *twice, *alias)[FAULT] == REQUEST_FAULT
    assert read(index, *alias, *twice)[FAULT] == REQUEST_FAULT


def test_of_two_request_ids_none_is_used() -> None:
    found = read(HeaderIndex(catalogue(HEADER)), (b"x-request-id", b"a"), (b"X-Request-Id", b"b"))
    assert found == {b"x-request-id": b""}


def test_answers_sent_by_a_client_are_not_read() -> None:
    index = HeaderIndex(catalogue(HEADER))
    assert read(index, (b"x-quota-tenant", b"victim"), (b"x-quota-status", b"ok"), (b"x-quota-plan", b"gold")) == {}


def test_names_of_other_headers_are_bounded() -> None:
    index = HeaderIndex(catalogue(HEADER))
    for number in range(5_000):
        read(index, (b"x-%d" % number, b""))
    read(index, (b"x" * 10_000, b""))
    assert len(index.names) <= 1_024
    assert all(len(name) <= 64 for name in index.names)


def test_the_memo_is_bounded_and_keeps_answering() -> None:
    reader = IdentityReader(catalogue(HEADER, user_header="x-user-id"))
    for number in range(MEMO_ENTRIES_MAX + 100):
        found = {b"x-tenant-id": b"t%d" % number, b"x-user-id": b"u%d" % number}
        assert reader.identify(found) == Identity(f"t{number}", None, f"u{number}")
    assert MEMO_ENTRIES_MAX * 3 // 4 < len(reader._rules[0][1]) <= MEMO_ENTRIES_MAX
    assert MEMO_ENTRIES_MAX * 3 // 4 < len(reader._users) <= MEMO_ENTRIES_MAX


class TestTokens:
    @pytest.mark.parametrize("claims", [{"org": {"id": "acme"}}, {"org.id": "acme", "org": {"id": "other"}}])
    def test_a_claim_is_an_exact_name_or_a_path(self, claims: dict[str, Any]) -> None:
        assert claim_of(payload(claims), "org.id") == "acme"

    def test_a_payload_may_come_padded_compact_or_with_a_scheme(self) -> None:
        plain = payload({"sub": "acme"})
        assert claim_of(plain + b"=" * (-len(plain) % 4), "sub") == "acme"
        assert claim_of(b"e30." + plain + b".c2ln", "sub") == "acme"
        assert claim_of(b"Bearer e30." + plain + b".c2ln", "sub") == "acme"

    def test_an_integer_is_an_id_and_nothing_else_is(self) -> None:
        assert claim_of(payload({"sub": 42}), "sub") == "42"
        others: tuple[Any, ...] = (True, None, 1.5, [], {}, ["acme"])
        for other in others:
            assert claim_of(payload({"sub": other}), "sub") is None

    @pytest.mark.parametrize(
        "value",
        [
            b"",
            b"!!!!",
            b"e30",
            b"a.b",
            b"a.b.c.d",
            b"Basic e30",
            payload([]),
            payload("x"),
            b"[" * 9000,
            b"\xff\xfe",
            b"a",
        ],
    )
    def test_what_cannot_be_read_names_nobody(self, value: bytes) -> None:
        assert claim_of(value, "sub") is None

    def test_deep_nesting_names_nobody(self) -> None:
        assert claim_of(base64.urlsafe_b64encode(b"[" * 12_000), "sub") is None

    def test_a_token_without_the_claim_is_a_conflict(self) -> None:
        assert identify(TOKEN, HEADER, x_jwt_payload=payload({}), x_tenant_id=b"t") is CONFLICT
        assert identify(TOKEN, x_jwt_payload=payload({"org": {"id": "acme"}})) == Identity("acme")
        assert identify(TOKEN, x_jwt_payload=payload({"org": {"id": "a\nb"}})) is CONFLICT
        assert identify(TOKEN, x_jwt_payload=payload({"org": {"id": "\ud800"}})) is CONFLICT
        assert identify(TOKEN, x_jwt_payload=payload({"org": {"id": ""}})) is CONFLICT


class TestCertificates:
    XFCC = rb'By=spiffe://us;Hash=ab12;Subject="OU=x,CN=acme\, \"inc\",O=y";URI=spiffe://them/acme;DNS=a.example;DNS=b.example'

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("Hash", "ab12"),
            ("hash", "ab12"),
            ("URI", "spiffe://them/acme"),
            ("CN", 'acme, "inc"'),
            ("Subject", 'OU=x,CN=acme\\, "inc",O=y'),
            ("DNS", None),
            ("Cert", None),
        ],
    )
    def test_a_field_is_read_when_it_is_the_only_one(self, field: str, value: str | None) -> None:
        assert field_of(self.XFCC, field) == value

    @pytest.mark.parametrize(
        "subject",
        [
            r"O=x\,CN=victim",
            r"CN=a,CN=victim",
            r"CN=\76ictim",
            r"O=x",
            r"CN=\"victim\",CN=me",
            r"O=x+CN=a+CN=victim",
            "",
        ],
    )
    def test_a_common_name_cannot_be_smuggled_in(self, subject: str) -> None:
        assert field_of(f'Subject="{subject}"'.encode(), "CN") is None

    def test_two_elements_with_different_values_name_nobody(self) -> None:
        assert field_of(b"Hash=aa,Hash=bb", "Hash") is None
        assert field_of(b"Hash=aa;URI=a,Hash=aa;URI=b", "URI") is None

    @pytest.mark.parametrize("value", [b"", b"nonsense", b'Hash="unclosed', b"Hash", b"=x", b"\xff"])
    def test_what_cannot_be_read_names_nobody(self, value: bytes) -> None:
        assert field_of(value, "Hash") is None

    def test_without_a_field_the_header_is_the_value(self) -> None:
        assert identify(CERTIFICATE, x_client_fingerprint=b"ab12") == Identity("ab12")
