"""Where Redis is, as one URL says it: one server, a master that sentinels name, or the nodes of a cluster.

    redis://user:password@host:6379/0                  one server; rediss:// with TLS, unix:///path for a socket
    redis+sentinel://user:password@h1:26379,h2:26379/master/0?sentinel_user=u&sentinel_password=p
    redis+cluster://user:password@h1:6379,h2:6379      some of the nodes; they name the others
    rediss+sentinel://, rediss+cluster://              the same with TLS everywhere

Guarantees: no message quotes any part of the URL, for it holds passwords.
"""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import parse_qs, quote, unquote

from msgspec import Struct

from sidecar.errors import SettingsInvalid

NAME = "SIDECAR_REDIS_URL"
SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
PORT = 6379
SENTINEL_PORT = 26379
PORT_MAX = 65_535
# Not urlsplit: newer versions of Python refuse a list of hosts with an IPv6 address in it.
_URL = re.compile(r"[^:]+://([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#.*)?", re.DOTALL)

Kind = Literal["one", "sentinel", "cluster"]


class RedisUrl(Struct, frozen=True, kw_only=True):
    """A URL that was read; ``hosts`` are sentinels or nodes, ``given`` is the text itself, for one server."""

    kind: Kind
    given: str
    tls: bool = False
    hosts: tuple[tuple[str, int], ...] = ()
    user: str = ""
    password: str = ""
    database: int = 0
    master: str = ""
    sentinel_user: str = ""
    sentinel_password: str = ""

    def __repr__(self) -> str:
        return f"RedisUrl({self.kind})"

    def server(self, host: str, port: int) -> str:
        """The URL of one server that holds data."""
        return self._url(host, port, self.user, self.password, self.database)

    def sentinel(self, host: str, port: int) -> str:
        """The URL of one sentinel."""
        return self._url(host, port, self.sentinel_user, self.sentinel_password, 0)

    def _url(self, host: str, port: int, user: str, password: str, database: int) -> str:
        login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
        return f"{'rediss' if self.tls else 'redis'}://{login}{f'[{host}]' if ':' in host else host}:{port}/{database}"


def parse(text: str) -> RedisUrl:
    """Read a URL; raises SettingsInvalid that names the part and what would be right."""
    scheme, found, _ = text.partition("://")
    if not found or scheme not in SCHEMES:
        raise _bad(f"must begin with {', '.join(f'{name}://' for name in SCHEMES[:-1])} or {SCHEMES[-1]}://")
    netloc, path, query = _parts(text)
    tls, kind = scheme.startswith("rediss"), scheme.partition("+")[2]
    if scheme == "unix":
        if not path.strip("/"):
            raise _bad("has no path; write unix:///path/of/the/socket")
        _only_database(query)
        return RedisUrl(kind="one", given=text)
    login, _, places = netloc.rpartition("@")
    user, _, password = login.partition(":")
    if kind == "":
        if len(_hosts(places, PORT)) > 1:
            raise _bad("names several hosts; write redis+sentinel:// or redis+cluster:// for them")
        _database(path.strip("/"))
        _only_database(query)
        return RedisUrl(kind="one", given=text, tls=tls)
    if kind == "cluster":
        if path.strip("/") not in ("", "0"):
            raise _bad("names a database; a cluster has number 0 only")
        if query:
            raise _bad("has options behind '?'; redis+cluster:// takes none")
        hosts = _hosts(places, PORT)
        return RedisUrl(
            kind="cluster", given=text, tls=tls, hosts=hosts, user=unquote(user), password=unquote(password)
        )
    master, _, database = path.strip("/").partition("/")
    if not master:
        raise _bad("names no master; write redis+sentinel://host:26379/NAME, as `sentinel monitor NAME` has it")
    options = parse_qs(query, keep_blank_values=True)
    if set(options) - {"sentinel_user", "sentinel_password"}:
        raise _bad("has an unknown option behind '?'; sentinel_user and sentinel_password are known")
    return RedisUrl(
        kind="sentinel",
        given=text,
        tls=tls,
        hosts=_hosts(places, SENTINEL_PORT),
        user=unquote(user),
        password=unquote(password),
        database=_database(database),
        master=unquote(master),
        sentinel_user=options.get("sentinel_user", [""])[-1],
        sentinel_password=options.get("sentinel_password", [""])[-1],
    )


def _parts(text: str) -> tuple[str, str, str]:
    """Authority, path and query (RFC 3986, section 3)."""
    found = _URL.match(text)
    if found is None or found[1].count("[") != found[1].count("]"):
        raise _bad("is no URL; percent-encode what is not a letter or digit in user and password")
    return found[1], found[2], found[3] or ""


def _hosts(places: str, default_port: int) -> tuple[tuple[str, int], ...]:
    return tuple(_host(place, number, default_port) for number, place in enumerate(places.split(","), 1))


def _host(place: str, number: int, default_port: int) -> tuple[str, int]:
    place = place.strip()
    closing = place.rfind("]") + 1
    host = place[1 : closing - 1] if place.startswith("[") and closing else place.partition(":")[0]
    rest = place[closing:] if closing else place[len(host) :]
    port = rest[1:] if rest else str(default_port)
    if not host or rest[:1] not in ("", ":") or not (port.isascii() and port.isdecimal()) or int(port) > PORT_MAX:
        raise _bad(f"has no host and port as number {number} of its hosts; write host:{default_port} or [v6]:port")
    return host, int(port)


def _database(text: str) -> int:
    if text and not (text.isascii() and text.isdecimal()):
        raise _bad("has no number as database; write /0 or nothing")
    return int(text or 0)


def _only_database(query: str) -> None:
    """Whatever else the driver takes there goes before our own: timeouts, retries, whether certificates are checked."""
    options = parse_qs(query, keep_blank_values=True)
    if set(options) - {"db"}:
        raise _bad("has an option behind '?'; only db is taken there, the rest are settings (SIDECAR_REDIS_...)")
    _database(options.get("db", [""])[-1])


def _bad(what: str) -> SettingsInvalid:
    return SettingsInvalid(f"{NAME} {what}")
