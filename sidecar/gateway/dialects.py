"""How each gateway asks, and what it can make of the answer.

================  ===============================  =========================================  ====================
path              asked by                         the original request                       a denial
================  ===============================  =========================================  ====================
``/envoy/*``      Envoy, Istio (HTTP ext_authz     method and Host as they are; path and      real status, headers
                  with ``path_prefix: /envoy``)    query after the prefix                     and body
``/forward``      Traefik forwardAuth, Caddy       ``X-Forwarded-Method``, ``-Uri``,          the same
                  forward_auth                     ``-Host`` (else Host)
``/nginx``        nginx auth_request               ``X-Original-Method``, ``-URI``,           see below
                                                   ``-Host`` (else Host)
================  ===============================  =========================================  ====================

200 allows everywhere. nginx passes on 401 and 403 only and discards the body of the subrequest, so to nginx a denial
is 401 or 403 without a body, with headers to rebuild the real answer from:

* ``x-quota-http-status``: the real status (401, 402, 403, 429, 503; 4xx for a check that is no proper one);
* ``x-quota-problem``: the problem+json body, one line of visible ASCII, usable as it is:
  ``auth_request_set $quota_problem $upstream_http_x_quota_problem;`` and ``return 429 $quota_problem;``.
  It may be 4 kilobytes long: ``proxy_buffer_size 16k;``;
* ``Retry-After``, ``RateLimit``, ``RateLimit-Policy``, ``x-quota-status``, ``x-request-id``, ``WWW-Authenticate``: as
  elsewhere, each to be copied with ``auth_request_set`` and ``add_header ... always``.

A decision that failed here is 500 to every gateway: an error, for which each has a failure mode of its own.

The original's headers are read by their exact names (in any case); a repeated one makes the check improper, since
one of the two could be the client's. Aliases with underscores or dots are not read at all.
"""

from __future__ import annotations

from msgspec import Struct

from sidecar.gateway.identity import Found

HOST = b"host"
NGINX_PATH = b"/nginx"
FORWARD_PATH = b"/forward"
METHOD_BYTES_MAX = 32


class Improper(Exception):
    """The check does not say properly which request it is about; the message names the header."""


class Dialect(Struct, frozen=True):
    """A gateway dialect; header names are empty where the check itself is the original request."""

    name: str
    method: bytes = b""
    uri: bytes = b""
    host: bytes = b""


ENVOY = Dialect("envoy")
NGINX = Dialect("nginx", b"x-original-method", b"x-original-uri", b"x-original-host")
FORWARD = Dialect("forward", b"x-forwarded-method", b"x-forwarded-uri", b"x-forwarded-host")
BY_PATH = {NGINX_PATH: NGINX, FORWARD_PATH: FORWARD}

# Every header that describes the original request; none may be repeated.
ORIGINAL_HEADERS = frozenset(
    header for dialect in (NGINX, FORWARD) for header in (dialect.method, dialect.uri, dialect.host)
) | {HOST}


def original(dialect: Dialect, found: Found) -> tuple[bytes, bytes, bytes]:
    """Method, host and target of the original request, from the headers of its dialect."""
    method = found.get(dialect.method, b"").strip()
    target = found.get(dialect.uri, b"").strip()
    host = (found.get(dialect.host) or found.get(HOST, b"")).strip()
    if not target:
        raise Improper(f"{_spelled(dialect.uri)} is missing")
    if not _is_method(method):
        raise Improper(f"{_spelled(dialect.method)} is {'no method' if method else 'missing'}")
    # A folded host is a repeated one; no host has a comma or a blank.
    if b"," in host or b" " in host:
        raise Improper(f"{_spelled(dialect.host if found.get(dialect.host) else HOST)} is no host")
    return method, host, target


def _spelled(header: bytes) -> str:
    return header.decode().title()


def _is_method(method: bytes) -> bool:
    return 0 < len(method) <= METHOD_BYTES_MAX and method.replace(b"-", b"").isalpha()
