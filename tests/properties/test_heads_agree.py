"""Whatever was learnt before, by whom and under which catalogue: a remembered head answers as parsing it would."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.e2e.smuggling import CORPUS, get
from tests.fuzz.twins import SECRET, Twins

FIRST_LINE = re.compile(rb"\A([A-Z]+) ([^ ]*) HTTP/1.1\r\n")
AS_NGINX = rb"GET /nginx HTTP/1.1\r\nX-Original-Method: \1\r\nX-Original-URI: \2\r\n"

# What is put between or in place of lines, ...
LINES = [
    *("x-request-id: id-9", "X-Request-Id: id-9", "x-request-id:id-9", "X-REQUEST-ID: id-9", "x-request-id: "),
    *("x-tenant-id: victim", "x_tenant_id: victim", "X-Tenant-Id:victim", "x-user-id: eve", "x-b3-traceid: victim"),
    *(
        "X-Forwarded-Uri: /v1/cheap/x",
        "X-Original-URI: /v1/cheap/x",
        "x-original-uri:/v1/cheap/x",
        "Host: admin.example",
    ),
    *("traceparent: t", "Traceparent: ", "b3: \t0", "b3: x\r\n folded", " folded", "", "x: y\nx-tenant-id: victim"),
    *("Content-Length: 0", "Content-Length: 4", "Transfer-Encoding: chunked", "Expect: 100-continue", "Upgrade: h2c"),
    *("Connection: close", "Connection: keep-alive", f"x-quota-secret: {SECRET}", "x-quota-secret: no"),
    *("GET /envoy/v1/dear/x HTTP/1.1", "GET /envoy/ HTTP/1.0", "0", "x: HTTP/1.1", ": x"),
]
# ... in place of the request line or behind the target, ...
FIRST = [
    *("{0}", "GET {1}", "GET {1} HTTP/1.0", "GET {1} HTTP/1.1 HTTP/1.1", " GET {1} HTTP/1.1", "\nGET {1} HTTP/1.1"),
    *("{1} HTTP/1.1", "{2} HTTP/1.1", "{2}\nGET\n HTTP/1.1", "{2}?GET? HTTP/1.1", "{2}\nGET\nadmin.example HTTP/1.1"),
    *(
        "GET {1}\n\nadmin.example HTTP/1.1",
        "GET {1}??admin.example HTTP/1.1",
        "GET {1}#x HTTP/1.1",
        "GET {1}? HTTP/1.1",
    ),
    *("GET\t{1} HTTP/1.1", "CONNECT {1} HTTP/1.1", "GET http://admin.example{1} HTTP/1.1", "GET {1}?a\x80 HTTP/1.1"),
]
# ... and anywhere.
BYTES = [b"\r\n", b"\n", b"\r", b" ", b"\t", b"\x00", b"?", b"#", b"/", b"%2f", b":", b"\x80", b",", b"-", b"0", b""]
PATHS = ["/", "/v1/cheap/x", "/v1/dear/x", "/v1/cheap/x?a=b", "/v1//dear/./x", "/v1/%64ear/x", "/v1/cheap/x;/../dear"]
TENANTS = ["acme", "acme", "acme", "victim", "deny", "wait", "bug", "a,b", ""]
# {0} is the path that is asked for, or another one; clients may copy it.
EXTRA = [
    *("traceparent: 00-aa-01", "Traceparent: 00-bb-01", "x-b3-traceid: acme", "x-forwarded-for: 10.0.0.1", "b3: 1"),
    *("x-user-id: bob", "Content-Length: 0", f"x-quota-secret: {SECRET}", "Authorization: Bearer key"),
    *(
        "X-Original-URI: {0}",
        "X-Forwarded-Uri: {0}",
        "X-Original-Uri: {0}",
        "Connection: keep-alive",
        "cookie: a=b; c=d",
    ),
    *("Connection: close", "Expect: 100-continue", "Upgrade: websocket", "Transfer-Encoding: chunked"),
]
DIALECTS = {
    "envoy": ("", ""),
    "nginx": ("X-Original-Method", "X-Original-URI"),
    "forward": ("X-Forwarded-Method", "X-Forwarded-Uri"),
}


class Form:
    """What a head is made of, but for what changes with each request."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self.dialect = draw(st.sampled_from(list(DIALECTS)))
        self.id_name = draw(st.sampled_from(["x-request-id", "X-Request-Id", "", "X-REQUEST-ID"]))
        self.host = draw(st.sampled_from(["Host: a", "Host: admin.example", "host: a", ""]))
        self.tenant = draw(st.sampled_from(TENANTS))
        self.extra = draw(st.lists(st.sampled_from(EXTRA), max_size=2))
        self.place = draw(st.integers(0, 6))

    def lines(self, method: str, path: str, request_id: str, copied: str) -> list[str]:
        """Request line and header lines."""
        found = [self.host, f"x-tenant-id: {self.tenant}"]
        method_header, uri_header = DIALECTS[self.dialect]
        if uri_header:
            found += [f"{method_header}: {method}", f"{uri_header}: {path}"]
        found += [line.format(copied) for line in self.extra]
        if self.id_name:
            found.insert(self.place, f"{self.id_name}: {request_id}")
        first = f"GET /{self.dialect} HTTP/1.1" if uri_header else f"{method} /envoy{path} HTTP/1.1"
        return [first, *filter(None, found), "", ""]


@st.composite
def requests(draw: Callable[[Any], Any], form: Form, changes: int) -> bytes:
    """One request of a form, changed in a few places."""
    path = draw(st.sampled_from(PATHS))
    copied = path if not changes else draw(st.sampled_from(PATHS))
    lines = form.lines(
        draw(st.sampled_from(["GET", "POST"])), path, draw(st.sampled_from(["id-1", "id-2", "0", "a b", "-"])), copied
    )
    scattered = 0
    for _ in range(changes):
        what = draw(st.sampled_from(["first", "between", "behind", "value", "instead", "twice", "bytes", "nothing"]))
        place = draw(st.integers(0, len(lines) - 1))
        if what == "first":
            line = draw(st.sampled_from(FIRST))
            lines[0] = line.format(lines[0], "/envoy" + path.partition("?")[0], path.partition("?")[0])
        elif what == "between":
            lines.insert(place, draw(st.sampled_from(LINES)))
        elif what == "behind":
            lines.append(draw(st.sampled_from(LINES)))
        elif what == "value":
            name = lines[place].partition(":")[0]
            lines[place] = (
                f"{name}: {draw(st.sampled_from([path, 'victim', '', 'a b', ' x', 'admin.example', 'id-3']))}"
            )
        elif what == "instead":
            lines[place] = draw(st.sampled_from(LINES))
        elif what == "twice":
            lines.insert(draw(st.integers(0, len(lines) - 1)), lines[place])
        else:
            scattered += what == "bytes"
    data = "\r\n".join(lines).encode("latin-1")
    for _ in range(scattered):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.sampled_from(BYTES)) + data[at + draw(st.sampled_from([0, 0, 1, 2])) :]
    return data


@st.composite
def steps(draw: Callable[[Any], Any]) -> list[tuple[str, int, bytes]]:
    """Requests that are learnt, requests near them, and what may happen between them."""
    connections = st.sampled_from([0, 0, 0, 1, 1, 2, 3])
    found: list[tuple[str, int, bytes]] = [("use", draw(st.integers(0, 2)), b"")]
    forms = [Form(draw) for _ in range(draw(st.integers(1, 3)))]
    for form in forms:
        number = draw(connections)
        taught = draw(requests(form, 0))
        found += [("send", number, taught), ("send", number, draw(requests(form, 0))), ("send", number, taught)]
    for _ in range(draw(st.integers(2, 6))):
        what = draw(st.sampled_from(["send", "send", "send", "send", "pair", "halves", "work", "use"]))
        number = draw(connections)
        if what in {"work", "use"}:
            found.append((what, number, b""))
            continue
        data = draw(requests(draw(st.sampled_from(forms)), draw(st.sampled_from([0, 1, 1, 2]))))
        if what == "pair":
            data += draw(requests(draw(st.sampled_from(forms)), draw(st.sampled_from([0, 1]))))
        cut = draw(st.integers(0, len(data))) if what == "halves" else len(data)
        found += [("send", number, part) for part in (data[:cut], data[cut:]) if part]
    return found


@given(steps())
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
def test_a_remembered_head_answers_as_parsing_it_would(program: list[tuple[str, int, bytes]]) -> None:
    twins = Twins()
    for what, number, data in program:
        if what == "send":
            twins.send(number, data)
        elif what == "work":
            twins.work()
        else:
            twins.use(number)
    event(f"answered from memory: {min(twins.recalled, 3)}")
    twins.close()


def test_what_smugglers_send_is_answered_in_the_same_way_from_memory() -> None:
    """All of the corpus that gateways get, as checks of theirs, beside a plain one."""
    twins = Twins()
    plain = get("/v1/cheap/x").replace(b"Connection: close\r\n", b"")
    for data in (plain, *CORPUS.values()):
        kept = data.replace(b"Connection: close\r\n", b"")
        for check in (kept.replace(b" /v1/", b" /envoy/v1/"), FIRST_LINE.sub(AS_NGINX, kept)):
            for number in (0, 0, 1):
                twins.send(number, check)
    assert twins.recalled > len(CORPUS)
    twins.close()
