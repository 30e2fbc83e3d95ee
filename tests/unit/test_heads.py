"""A head is found again only if the parser would read it in the same way."""

from __future__ import annotations

import pytest

from sidecar.enforcement.decision import Identity
from sidecar.gateway import heads
from sidecar.gateway.dialects import ENVOY, FORWARD, NGINX, Dialect
from sidecar.gateway.heads import Head, Heads, scope_of

HEAD = Head(Identity("acme"), ENVOY)
LINE = b"GET /envoy/"


def request(request_id: str = "", *, name: str = "x-request-id", path: str = "/envoy/", more: str = "") -> bytes:
    line = f"{name}: {request_id}\r\n" if request_id else ""
    return f"GET {path} HTTP/1.1\r\nhost: a\r\n{more}{line}x-tenant-id: acme\r\n\r\n".encode()


def learnt(
    data: bytes, request_id: bytes = b"", *, head: Head = HEAD, line: bytes = LINE, target: bytes = b""
) -> Heads:
    known = Heads()
    for _ in range(2):
        known.learn(data, head, line, request_id, target)
    return known


@pytest.mark.parametrize("name", ["x-request-id", "X-Request-Id"])
def test_a_head_is_known_whatever_its_request_id(name: str) -> None:
    known = learnt(request("one-1", name=name), b"one-1")
    assert known.find(request("another-id-2", name=name)) == (HEAD, LINE, b"another-id-2")


def test_a_head_without_an_id_is_known_by_the_rest_of_its_bytes() -> None:
    known = learnt(request())
    assert known.find(request()) == (HEAD, LINE, b"")
    assert known.find(request("one-1")) is None
    assert known.find(request(more="x-user: b\r\n")) is None


@pytest.mark.parametrize("path", ["/envoy/x", "/envoy/x/%7e/..;a=b", "/envoy//", "/envoy/x?a=b&c=/d?e"])
def test_a_head_is_known_whatever_its_target(path: str) -> None:
    known = learnt(request("one-1"), b"one-1")
    target = b"GET " + path.encode().partition(b"?")[0]
    assert known.find(request("one-1", path=path)) == (HEAD, target, b"one-1")


@pytest.mark.parametrize("path", ["/envoy/?a b", "/envoy/?a\tb", "/envoy/?a#b", "/envoy/?\x00", "/envoy/?ä"])
def test_a_query_that_could_change_the_parse_is_left_to_the_parser(path: str) -> None:
    assert learnt(request("one-1"), b"one-1").find(request("one-1", path=path)) is None


def described(uri: str, *, header: str, path: str, trace: str = "") -> bytes:
    more = f"traceparent: {trace}\r\n" if trace else ""
    return f"GET {path} HTTP/1.1\r\nHost: a\r\n{header}: {uri}\r\n{more}X-Request-Id: one-1\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("dialect", "header", "path"), [(NGINX, "X-Original-URI", "/nginx"), (FORWARD, "X-Forwarded-Uri", "/forward")]
)
def test_a_target_in_a_header_is_cut_out_too(dialect: Dialect, header: str, path: str) -> None:
    line = b"GET " + path.encode()
    head = Head(Identity("acme"), dialect, line=line, method=b"POST")
    known = learnt(described("/a", header=header, path=path), b"one-1", head=head, line=line, target=b"/a")
    assert known.find(described("/b?c", header=header, path=path)) == (head, b"/b", b"one-1")
    for uri in ("", " /b", "/b ", "/b\x00", "/b\tc", "/ä", "/b\nx-tenant-id: victim", "/b\r\nx-tenant-id: victim"):
        assert known.find(described(uri, header=header, path=path)) is None
    assert known.find(described("/b", header=header, path=path + "?")) is None
    assert known.find(described("/b", header=header.upper(), path=path)) is None


def test_a_trace_is_cut_out_too() -> None:
    line = b"GET /nginx"
    head = Head(Identity("acme"), NGINX, line=line, method=b"GET")
    first = described("/a", header="X-Original-URI", path="/nginx", trace="00-aa-bb-01")
    known = learnt(first, b"one-1", head=head, line=line, target=b"/a")
    other = described("/a", header="X-Original-URI", path="/nginx", trace="00-cc-dd-01")
    assert known.find(other) == (head, b"/a", b"one-1")
    assert known.find(other.replace(b"00-cc", b"00\x00cc")) is None


@pytest.mark.parametrize(
    ("dialect", "header", "path", "other"),
    [
        (NGINX, "X-Original-URI", "/nginx", "X-Forwarded-Uri"),
        (FORWARD, "X-Forwarded-Uri", "/forward", "X-Original-URI"),
        (FORWARD, "X-FORWARDED-URI", "/forward", "X-Original-Uri"),  # a spelling that is not cut out
    ],
)
def test_the_target_of_another_dialect_is_not_taken_for_the_own_one(
    dialect: Dialect, header: str, path: str, other: str
) -> None:
    """Where a client's headers come along, it could teach the memo a target and then ask for another one."""

    def asked(uri: str, spoofed: str) -> bytes:
        return described(uri, header=header, path=path).replace(b"X-Req", f"{other}: {spoofed}\r\nX-Req".encode())

    line = b"GET " + path.encode()
    head = Head(Identity("acme"), dialect, line=line, method=b"POST")
    known = learnt(asked("/a", "/a"), b"one-1", head=head, line=line, target=b"/a")
    assert known.find(asked("/dear", "/cheap")) in (None, (head, b"/dear", b"one-1"))
    assert known.find(asked("/a", "/cheap")) in (None, (head, b"/a", b"one-1"))


def test_an_id_behind_the_end_of_a_head_is_not_its_id() -> None:
    known = learnt(request())
    for behind in (b"\r\nx-request-id: one", b"\r\nx-request-id: one\r", b"\r\nX-Request-Id: one"):
        assert known.find(request() + behind) is None


@pytest.mark.parametrize("name", ["traceparent", "x-amzn-trace-id", "x-request-id"])
def test_a_header_that_says_who_asks_is_not_cut_out(name: str) -> None:
    known = Heads(frozenset({name.encode()}))
    for _ in range(3):
        known.learn(request(more=f"{name}: acme\r\n"), HEAD, LINE, b"acme" if name == "x-request-id" else b"", b"")
    assert known.find(request(more=f"{name}: victim\r\n")) is None


def test_a_method_and_a_host_make_keys_that_no_target_can_be_read_as() -> None:
    targets = [b"GET /envoy/x", b"/x", b"/x\nGET\n", b"GET /envoy/x\n\nb"]
    scopes = [scope_of(method, host) for method in (b"", b"GET") for host in (b"", b"b", b"b?c", b"?b")]
    assert len({target + scope for target in targets for scope in scopes}) == len(targets) * len(scopes)


def test_clients_that_fill_the_list_of_what_is_cut_out_leave_room_for_targets() -> None:
    known = Heads()
    for name in sorted(heads._CUT - {b"x-original-uri", b"x-forwarded-uri"}):
        for spelling in (name, name.title()):
            known.learn(request(more=f"{spelling.decode()}: x\r\n"), HEAD, LINE, b"", b"")
    assert len(known._cuts) == heads.CUTS_MAX
    line = b"GET /nginx"
    head = Head(Identity("acme"), NGINX, line=line, method=b"POST")
    for _ in range(2):
        known.learn(described("/a", header="X-Original-URI", path="/nginx"), head, line, b"one-1", b"/a")
    assert known.find(described("/b", header="X-Original-URI", path="/nginx")) == (head, b"/b", b"one-1")


def test_what_came_once_is_not_kept() -> None:
    known = Heads()
    known.learn(request(), HEAD, LINE, b"", b"")
    assert known.find(request()) is None


@pytest.mark.parametrize(
    "request_id",
    ["a b", "a\tb", "a\x00b", "a,b", "", " a", "ä", "a" * 129, "a\nx-tenant-id: victim", "a\r\nx-tenant-id: victim"],
)
def test_an_id_that_could_change_the_parse_is_left_to_the_parser(request_id: str) -> None:
    known = learnt(request("one-1"), b"one-1")
    line = f"x-request-id: {request_id}\r\n"
    data = request("one-1").replace(b"x-request-id: one-1\r\n", line.encode())
    assert known.find(data) is None


@pytest.mark.parametrize(
    ("data", "parsed"),
    [
        (request("one", more="X-Request-ID: one\r\n"), b"one"),  # twice: the parser has none
        (request("one", more="X-Request-ID: two\r\n"), b""),
        (request(more="x-request-id:one\r\n"), b"one"),  # a spelling in which the value is not found
        (request(more="x-request-id:  one\r\n"), b"one"),
        (request("one", path="/envoy/?x-request-id=1"), b"one"),
        (request("one", path="/other/"), b"one"),
        (request("o ne"), b"o ne"),
        (request() + request(), b""),  # two requests in one read
        (request()[:-2], b""),
        (request() + b"GET", b""),
        (request(more="a: " + "x" * heads.HEAD_BYTES_MAX + "\r\n"), b""),
    ],
)
def test_what_is_not_one_plain_head_is_not_kept(data: bytes, parsed: bytes) -> None:
    known = learnt(data, parsed)
    assert known.find(data) is None
    assert known.find(request("one")) is None


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "HEADS_MAX", 8)
    monkeypatch.setattr(heads, "SEEN_MAX", 16)
    known = Heads()
    for number in range(100):
        for _ in range(2):
            known.learn(request(more=f"x-user: {number}\r\n"), HEAD, LINE, b"", b"")
        assert len(known._known) <= 8
        assert len(known._seen) <= 16
    found = known.find(request(more="x-user: 99\r\n"))
    assert found is not None
    assert found[0] is HEAD
