"""One Redis as an operator should run it: TLS with client certificates, and the users of k8s/redis-acl.conf alone."""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sidecar.embedded.port import free_port
from sidecar.embedded.redis import find_redis
from tests.servers.certificates import Certificates
from tests.servers.lacking import lacking
from tests.servers.redis_node import RedisNode

ROOT = Path(__file__).parents[2]
ACL = ROOT / "k8s" / "redis-acl.conf"
DESCRIBED = ROOT / "docs" / "operations.md"
OTHERS_PASSWORD = "of-the-other-servers"
NOBODYS_PASSWORD = "0" * 64
PASSWORDS = {"quota-authz": "of/the@authz", "quota-flusher": "of the flusher"}
ADMINISTRATOR = ("test-administrator", "of-the-test")


@functools.cache
def has_tls() -> bool:
    """Whether the Redis of this machine was built with it; the wheel's was not."""
    return b"tls-auth-clients" in find_redis().resolve().read_bytes()


def shipped_users() -> list[str]:
    """The lines of the file that is shipped, with passwords."""
    lines = [line for line in ACL.read_text().splitlines() if line and not line.startswith("#")]
    for user, password in PASSWORDS.items():
        place = next(number for number, line in enumerate(lines) if line.startswith(f"user {user} "))
        lines[place] = lines[place].replace(NOBODYS_PASSWORD, hashlib.sha256(password.encode()).hexdigest())
    return lines


def described_users() -> dict[str, str]:
    """Users that docs/operations.md gives to replicas and sentinels, as lines of redis.conf with a password."""
    users = re.findall(r"^user (\w+) on #\.\.\. (.*)$", DESCRIBED.read_text(), re.MULTILINE)
    return {name: f"user {name} on >{OTHERS_PASSWORD} {rules}" for name, rules in users}


def server_users() -> list[str]:
    """Everybody whom a replicated server knows, as lines of redis.conf; its replicas and sentinels log in, too."""
    others = described_users().values()
    return [*shipped_users(), *others, administrator(), "masteruser replica", f"masterauth {OTHERS_PASSWORD}"]


def login_of(user: str) -> str:
    """A shipped user and its password as a URL has them."""
    return f"{user}:{quote(PASSWORDS[user], safe='')}"


def tls(certificates: Certificates, port: int) -> list[str]:
    """TLS with client certificates on this port, and nothing without."""
    if not has_tls():
        lacking("redis-server has no TLS; on Debian: apt-get install redis-server")
    return [
        "port 0",
        f"tls-port {port}",
        f"tls-cert-file {certificates.server[0]}",
        f"tls-key-file {certificates.server[1]}",
        f"tls-ca-cert-file {certificates.ca}",
        "tls-auth-clients yes",
    ]


def tls_login(certificates: Certificates) -> dict[str, Any]:
    """What a client of the driver needs for it."""
    return {
        "ssl": True,
        "ssl_ca_certs": str(certificates.ca),
        "ssl_certfile": str(certificates.client[0]),
        "ssl_keyfile": str(certificates.client[1]),
    }


def tls_files(certificates: Certificates) -> dict[str, str]:
    """What the program's store needs for it."""
    return {
        "ca_file": str(certificates.ca),
        "cert_file": str(certificates.client[0]),
        "key_file": str(certificates.client[1]),
    }


def tls_settings(certificates: Certificates) -> dict[str, str]:
    """What the program needs for it."""
    return {f"SIDECAR_REDIS_{name.upper()}": path for name, path in tls_files(certificates).items()}


def administrator() -> str:
    """The test itself, as a line of redis.conf."""
    name, password = ADMINISTRATOR
    return f"user {name} on >{password} ~* &* +@all"


def secured(directory: Path, certificates: Certificates) -> RedisNode:
    """Not started yet; its administrator is the test."""
    port = free_port()
    lines = [*tls(certificates, port), *shipped_users(), administrator()]
    name, password = ADMINISTRATOR
    login = {"username": name, **tls_login(certificates)}
    return RedisNode(directory, lines, password=password, port=port, login=login)
