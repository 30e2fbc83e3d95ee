"""Requests meant to make two parsers disagree: about where one ends, what it asks for, or who asks.

Sources: RFC 9112 sections 2.2, 5.1, 5.2, 6.1, 6.3, 7.1 and 11.2 (what a server must refuse and why), RFC 3986 section 6
(spellings of a path), RFC 9110 section 5.1 (names), and the public research on desynchronisation (CL.TE, TE.CL, TE.TE,
CL.0, h2c upgrade, tunnelling by trailers). HIDDEN is what must never reach the application without a check of its own.
"""

from __future__ import annotations

HIDDEN = "GET /v1/dear/hidden HTTP/1.1\r\nHost: a\r\nx-api-key: soft\r\nX-Hidden: yes\r\n\r\n"
CHUNKED = "0\r\n\r\n" + HIDDEN


def post(headers: str, body: str, *, target: str = "/v1/cheap/x", version: str = "1.1") -> bytes:
    return f"POST {target} HTTP/{version}\r\nHost: a\r\nx-api-key: soft\r\n{headers}\r\n\r\n{body}".encode("latin-1")


def get(target: str, headers: str = "", *, line: str = "GET {} HTTP/1.1") -> bytes:
    return f"{line.format(target)}\r\nHost: a\r\nx-api-key: soft\r\n{headers}Connection: close\r\n\r\n".encode(
        "latin-1"
    )


LENGTH = f"Content-Length: {len(CHUNKED)}"

# Where does the request end?
FRAMING: dict[str, bytes] = {
    "length and chunked": post(f"{LENGTH}\r\nTransfer-Encoding: chunked", CHUNKED),
    "chunked and length": post(f"Transfer-Encoding: chunked\r\n{LENGTH}", CHUNKED),
    "length of less and chunked": post(
        "Content-Length: 4\r\nTransfer-Encoding: chunked", f"{len(HIDDEN):x}\r\n{HIDDEN}\r\n0\r\n\r\n"
    ),
    **{
        f"coding {coding!r}": post(f"{LENGTH}\r\nTransfer-Encoding:{coding}", CHUNKED)
        for coding in (
            "chunked",
            " xchunked",
            " chunked, identity",
            " identity, chunked",
            " chunked, chunked",
            "\tchunked",
            " \x0bchunked",
            " chunked\x0c",
            " CHUNKED",
            ' "chunked"',
            " chunked;q=1",
            " chunKed",
            " gzip",
            "",
            " chunked\x00",
            " \xa0chunked",
        )
    },
    **{
        f"name {name!r}": post(f"{LENGTH}\r\n{name}: chunked", CHUNKED)
        for name in (
            "Transfer-Encoding ",
            "Transfer_Encoding",
            " Transfer-Encoding",
            "Transfer-Encoding\t",
            "Transfer-Encodin\xc4\xa7",
            "Transfer\x00-Encoding",
            "\x0bTransfer-Encoding",
        )
    },
    "coding twice": post(f"{LENGTH}\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked", CHUNKED),
    "coding folded": post(f"{LENGTH}\r\nTransfer-Encoding:\r\n chunked", CHUNKED),
    "coding behind a bare LF": post(f"{LENGTH}\r\nX: y\nTransfer-Encoding: chunked", CHUNKED),
    "coding behind a bare CR": post(f"{LENGTH}\r\nX: y\rTransfer-Encoding: chunked", CHUNKED),
    "coding in HTTP/1.0": post(
        f"{LENGTH}\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked", CHUNKED, version="1.0"
    ),
    **{
        f"length {length!r}": post(f"Content-Length: {length}", HIDDEN)
        for length in (
            "0, 0",
            f"0, {len(HIDDEN)}",
            "+0",
            "-1",
            "0x0",
            "0\x0b",
            "0 0",
            "1e2",
            "",
            "00",
            "18446744073709551616",
        )
    },
    "two lengths": post(f"Content-Length: 0\r\nContent-Length: {len(HIDDEN)}", HIDDEN),
    "two lengths, the other way": post(f"Content-Length: {len(HIDDEN)}\r\nContent-Length: 0", HIDDEN),
    "the same length twice": post(f"Content-Length: {len(HIDDEN)}\r\nContent-Length: {len(HIDDEN)}", HIDDEN),
    "a length with a space before its colon": post(f"Content-Length : {len(HIDDEN)}", HIDDEN),
    "a body without a length": post("X: y", HIDDEN),
    "a GET with a body": get("/v1/cheap/x", f"Content-Length: {len(HIDDEN)}\r\n") + HIDDEN.encode(),
    "a HEAD with a body": get("/v1/cheap/x", f"Content-Length: {len(HIDDEN)}\r\n", line="HEAD {} HTTP/1.1")
    + HIDDEN.encode(),
    **{
        f"chunk {chunk!r}": post("Transfer-Encoding: chunked", chunk)
        for chunk in (
            f"0x0\r\n\r\n{HIDDEN}",
            f"0;\n\r\n\r\n{HIDDEN}",
            f"0\n\n{HIDDEN}",
            f"00000000000000000\r\n\r\n{HIDDEN}",
            f"10000000000000000\r\n{HIDDEN}",
            f"-1\r\n{HIDDEN}",
            f" 0\r\n\r\n{HIDDEN}",
            f"2\r\nabX\r\n0\r\n\r\n{HIDDEN}",
            f"2\r\nab0\r\n\r\n{HIDDEN}",
            f'1;a="\r\n"\r\nx\r\n0\r\n\r\n{HIDDEN}',
            f"0\r\nx-tenant-id: acme\r\nx-api-key: good\r\n\r\n{HIDDEN}",
            f"0\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n{HIDDEN}",
            "1\r\nx\r\nZ\r\n\r\n",
        )
    },
    "an expectation and its body at once": post(f"Expect: 100-continue\r\nContent-Length: {len(HIDDEN)}", HIDDEN),
    "an unknown expectation": post(f"Expect: 200-ok\r\nContent-Length: {len(HIDDEN)}", HIDDEN),
    "an upgrade to h2c": get(
        "/v1/cheap/x",
        "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nConnection: Upgrade, HTTP2-Settings\r\n",
    )
    + HIDDEN.encode(),
    "an upgrade to a websocket": get("/v1/cheap/x", "Upgrade: websocket\r\nConnection: Upgrade\r\n") + HIDDEN.encode(),
    "a preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN.encode(),
    "a method that tunnels": b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\nx-api-key: soft\r\n\r\n" + HIDDEN.encode(),
    "HTTP/0.9": b"GET /v1/dear/hidden\r\n" + HIDDEN.encode(),
    "two at once": get("/v1/cheap/x").replace(b"Connection: close\r\n", b"") + HIDDEN.encode(),
    "a proxy's own word": get("/v1/cheap/x", "Proxy-Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n")
    + HIDDEN.encode(),
    "hop-by-hop identity": get("/v1/cheap/x", "Connection: x-api-key, x-quota-tenant\r\n"),
}

# What is asked for?
TARGETS: dict[str, bytes] = {
    **{
        f"path {target!r}": get(target)
        for target in (
            "/v1/cheap/..%2fdear/x",
            "/v1/cheap/%2e%2e%2fdear/x",
            "/v1/cheap%2f..%2fdear/x",
            "/v1/cheap/.%2e/dear/x",
            "/v1/cheap/..%5cdear/x",
            "/v1/cheap/..\\dear\\x",
            "/v1/cheap/..;/dear/x",
            "/v1/cheap/..%3b/dear/x",
            "/v1/cheap/%252e%252e/dear/x",
            "/v1/cheap/%c0%ae%c0%ae/dear/x",
            "/v1/cheap/%e0%80%ae%e0%80%ae/dear/x",
            "/v1/cheap/%uff0e%uff0e/dear/x",
            "/v1/cheap/%f0%80%80%ae%f0%80%80%ae/dear/x",
            "/v1/cheap/..%c0%af..%c0%afdear/x",
            "/v1/cheap/..%e0%80%afdear/x",
            "/v1/cheap%ef%bc%8f..%ef%bc%8fdear/x",
            "/v1/cheap/%2E%2E/dear/x",
            "/v1/cheap/%2E%2e%2Fdear/x",
            "/v1/cheap/..%2Fdear/x",
            "/v1/cheap/..%5Cdear/x",
            "/v1/%44ear/x",
            "/v1/%64%65%61%72%2fx",
            "/v1/%64%65%61%72%2Fx",
            "/v1%2Fdear%2Fx",
            "/v1/d%65ar/%78?%2e%2e",
            "/v1/cheap/.%00./dear/x",
            "/v1/cheap/..%00/dear/x",
            "/v1/dear%00.cheap/x",
            "/v1/dear/%0ax",
            "/v1/dear\x00/x",
            "/v1/cheap/.../dear/x",
            "/v1/cheap/..../dear/x",
            "/v1/cheap/%2e/../dear/x",
            "/v1/cheap/x/../../dear/./x/",
            "/v1/cheap//../../dear/x",
            "/v1/./%2e/dear/x",
            "/v1/dear/%2fx",
            "/%76%31/dear/x",
            "/v1//dear///x",
            "//v1/dear/x",
            "///v1/dear/x",
            "/./v1/./dear/./x",
            "/../v1/dear/x",
            "/%2e%2e/v1/dear/x",
            "/v1/%64%65%61%72/x",
            "/v1/%2564ear/x",
            "/v1/dear%00/x",
            "/v1/cheap/%00/../dear/x",
            "/v1/dear%20/x",
            "/v1/dear/x%0d%0aX-Tenant-Id:%20acme",
            "/v1/dear/x?y=/../../cheap",
            "/v1/cheap/x?/../dear/x",
            "/v1/cheap/x#/../dear/x",
            "/v1/dear/x#",
            "/v1/dear",
            "/v1/dear/",
            "/v1/DEAR/x",
            "/v1/dear/.",
            "/v1/dear/..",
            "/v1/dear/%2e%2e/cheap/x",
            "/v1/dear/..;/cheap/x",
            "/v1/dear/..%5ccheap/x",
            "/v1/dear/..%2fcheap/x",
            "/v1/dear/%252e%252e/cheap/x",
            "/v1/dear//../cheap/x",
            "/v1/dear;/../cheap/x",
            "/v1/cheap/%",
            "/v1/cheap/%zz/../../dear/x",
            "http://a/v1/dear/x",
            "http://a:80//v1/dear/x",
            "http://b/v1/dear/x",
            "http://user:pass@a/v1/dear/x",
            "http://a/v1/cheap/../dear/x",
            "http://a/v1/cheap/..%2fdear/x",
            "http://a?/v1/cheap/x",
            "http://a#/v1/dear/x",
            "http:///v1/dear/x",
            "http://[::1]/v1/dear/x",
            "https://a/v1/dear/x",
            "HTTP://A/v1/dear/x",
            "ftp://a/v1/dear/x",
            "*",
            "a:80",
            "v1/dear/x",
            "",
            "/v1/dear/\x80",
            "/v1/cheap/x\x0b/../dear",
        )
    },
    **{
        f"line {line!r}": get("/v1/dear/x", line=line)
        for line in (
            "GET  {} HTTP/1.1",
            "GET\t{}\tHTTP/1.1",
            "GET {} HTTP/1.1 ",
            "GET {} HTTP/1.1 HTTP/1.0",
            "get {} HTTP/1.1",
            "GET {} http/1.1",
            "GET {} HTTP/1.9",
            "GET {} HTTP/2.0",
            "GET {} HTTP/3",
            "GET {} HTTP/01.1",
            "\r\n\r\nGET {} HTTP/1.1",
            " GET {} HTTP/1.1",
            "G\x00ET {} HTTP/1.1",
            "TRACE {} HTTP/1.1",
            "TRACK {} HTTP/1.1",
            "PROPFIND {} HTTP/1.1",
            "GET /v1/cheap/x {} HTTP/1.1",
        )
    },
    "two hosts": get("/v1/dear/x", "Host: b\r\n"),
    "the same host twice": get("/v1/dear/x", "Host: a\r\n"),
    "two hosts, one in another spelling": get("/v1/dear/x", "HOST: b\r\n"),
    "a host with a space before its colon": get("/v1/dear/x", "Host : b\r\n"),
    "two hosts in one": get("/v1/dear/x").replace(b"Host: a", b"Host: a, b"),
    "a host with a tenant behind a bare LF": get("/v1/dear/x").replace(b"Host: a", b"Host: a\nx-tenant-id: acme"),
    "a host of one and a target of another": get("http://b/v1/dear/x", "Host: c\r\n"),
    "a host with a path": get("/v1/cheap/x").replace(b"Host: a", b"Host: a/v1/dear"),
    "no host": get("/v1/dear/x").replace(b"Host: a\r\n", b""),
    "an empty host": get("/v1/dear/x").replace(b"Host: a", b"Host:"),
    "another path by header": get(
        "/v1/dear/x", "X-Original-URL: /v1/cheap\r\nX-Rewrite-URL: /v1/cheap\r\nX-Original-URI: /v1/cheap\r\n"
    ),
    "another method by header": get("/v1/dear/x", "X-HTTP-Method-Override: OPTIONS\r\nX-Original-Method: OPTIONS\r\n"),
}

# Who asks?
_KNOWN = "x-api-key: soft\r\n"
SPOOFS: dict[str, bytes] = {
    f"header {header!r}": get("/v1/dear/x").replace(
        _KNOWN.encode(), header.encode("latin-1") + b"\r\n" + _KNOWN.encode()
    )
    for header in (
        "x-tenant-id: acme",
        "X-Tenant-ID : acme",
        "x-tenant-id\t: acme",
        " x-tenant-id: acme",
        "X: y\r\n x-tenant-id: acme",
        "X: y\nx-tenant-id: acme",
        "X: y\rx-tenant-id: acme",
        "X: y\x00\r\nx-tenant-id: acme",
        "x-tenant-id:acme\r\nx-tenant-id: other",
        "x_tenant_id: acme",
        "x.tenant.id: acme",
        "x~tenant~id: acme",
        "x-tenant-id\x00: acme",
        "x-tenant-id\xa0: acme",
        "x-tenant-\xefd: acme",
        ": x-tenant-id: acme",
        "x-tenant-id",
        "x-api-key: good, soft",
        "x-api-key:\x00soft",
        "x-quota-tenant: acme",
        "X-Quota-Tenant: acme\r\nx-quota-tenant: acme",
        "x_quota_tenant: acme",
        "x.quota.tenant: acme",
        "x-quota-plan: enterprise",
        "x-quota-status: ok",
        "x-quota-problem: {}",
        "x-quota-feature-support: phone",
        "x.quota.feature.support: phone",
        "x-quota-anything-new: 1",
        "x-tenant: acme",
        "x_tenant: acme",
        "x.tenant: acme",
        "x-user: eve",
        "x-user-id: eve",
        "x.user.id: eve",
        "x-original-host: a",
        "x-original-uri: /v1/cheap/x",
        "X-Original-URL: /v1/cheap/x",
        "X_Original_URI: /v1/cheap/x",
        "x.original.uri: /v1/cheap/x",
        "x-original-method: OPTIONS",
        "x-forwarded-uri: /v1/cheap/x",
        "x-forwarded-method: OPTIONS",
        "x-forwarded-host: b",
        "x-rewrite-url: /v1/cheap/x",
        "x-envoy-internal: true",
        "x-envoy-external-address: 127.0.0.1",
        "x-envoy-expected-rq-timeout-ms: 1",
        "x-envoy-upstream-rq-timeout-ms: 1",
        "x-envoy-retry-on: 5xx\r\nx-envoy-max-retries: 9",
        "x-envoy-original-path: /v1/cheap/x\r\nx.envoy.original.path: /v1/cheap/x",
        "x-envoy-original-host: b",
        "x-envoy-auth-headers-to-remove: x-api-key",
        "x-envoy-auth-partial-body: false",
        "x-quota-secret: x",
        "x-quota-http-status: 200",
        "Connection: x-tenant-id\r\nx-tenant-id: acme",
        "X-Forwarded-For: 127.0.0.1\r\nForwarded: for=127.0.0.1",
        'x-forwarded-client-cert: Hash=0;Subject="CN=acme"',
        "x-jwt-payload: eyJzdWIiOiJhY21lIn0",
        "x-request-id: 00000000-0000-0000-0000-000000000000",
        "x-envoy-original-path: /v1/cheap",
        "x-envoy-decorator-operation: none",
        "x-envoy-force-trace: 1",
        "Transfer-Encoding: identity",
        "Authorization: Bearer good",
    )
}

CORPUS = {**FRAMING, **TARGETS, **SPOOFS}
