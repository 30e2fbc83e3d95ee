"""A head is found again only if the parser would read it in the same way."""

from __future__ import annotations

import pytest

from sidecar.catalogue.model import RouteRule
from sidecar.enforcement.decision import Identity
from sidecar.enforcement.fast_path import Check
from sidecar.gateway import heads
from sidecar.gateway.dialects import ENVOY
from sidecar.gateway.heads import Head, Heads

HEAD = Head(Check(Identity("acme"), RouteRule(name="one")), ENVOY, proven=False)


def request(request_id: str = "", *, name: str = "x-request-id", path: str = "/envoy/", more: str = "") -> bytes:
    line = f"{name}: {request_id}\r\n" if request_id else ""
    return f"GET {path} HTTP/1.1\r\nhost: a\r\n{more}{line}x-tenant-id: acme\r\n\r\n".encode()


def learnt(data: bytes, request_id: bytes = b"") -> Heads:
    known = Heads()
    known.learn(data, request_id, HEAD)
    known.learn(data, request_id, HEAD)
    return known


@pytest.mark.parametrize("name", ["x-request-id", "X-Request-Id"])
def test_a_head_is_known_whatever_its_request_id(name: str) -> None:
    known = learnt(request("one-1", name=name), b"one-1")
    assert known.find(request("another-id-2", name=name)) == (HEAD, b"another-id-2")


def test_a_head_without_an_id_is_known_by_all_its_bytes() -> None:
    known = learnt(request())
    assert known.find(request()) == (HEAD, b"")
    assert known.find(request("one-1"))[0] is None
    assert known.find(request(path="/envoy/x"))[0] is None
    assert known.find(request(more="x-user: b\r\n"))[0] is None


def test_what_came_once_is_not_kept() -> None:
    known = Heads()
    known.learn(request(), b"", HEAD)
    assert known.find(request())[0] is None


@pytest.mark.parametrize(
    "request_id",
    ["a b", "a\tb", "a\x00b", "a,b", "", " a", "ä", "a" * 129, "a\nx-tenant-id: victim", "a\r\nx-tenant-id: victim"],
)
def test_an_id_that_could_change_the_parse_is_left_to_the_parser(request_id: str) -> None:
    known = learnt(request("one-1"), b"one-1")
    line = f"x-request-id: {request_id}\r\n"
    data = request("one-1").replace(b"x-request-id: one-1\r\n", line.encode())
    assert known.find(data)[0] is None


@pytest.mark.parametrize(
    ("data", "parsed"),
    [
        (request("one", more="X-Request-ID: one\r\n"), b"one"),  # twice: the parser has none
        (request("one", more="X-Request-ID: two\r\n"), b""),
        (request(more="x-request-id:one\r\n"), b"one"),  # a spelling in which the value is not found
        (request(more="x-request-id:  one\r\n"), b"one"),
        (request("one", path="/envoy/?x-request-id=1"), b"one"),
        (request("o ne"), b"o ne"),
        (request() + request(), b""),  # two requests in one read
        (request()[:-2], b""),
        (request() + b"GET", b""),
        (request(more="a: " + "x" * heads.HEAD_BYTES_MAX + "\r\n"), b""),
    ],
)
def test_what_is_not_one_plain_head_is_not_kept(data: bytes, parsed: bytes) -> None:
    known = learnt(data, parsed)
    assert known.find(data)[0] is None
    assert known.find(request("one"))[0] is None


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "HEADS_MAX", 8)
    monkeypatch.setattr(heads, "SEEN_MAX", 16)
    known = Heads()
    for number in range(100):
        for _ in range(2):
            known.learn(request(path=f"/envoy/{number}"), b"", HEAD)
        assert len(known._known) <= 8
        assert len(known._seen) <= 16
    assert known.find(request(path="/envoy/99"))[0] is HEAD
