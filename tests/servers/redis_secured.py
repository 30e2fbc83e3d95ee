"""One Redis as an operator should run it: TLS with client certificates, and the users of k8s/redis-acl.conf alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sidecar.embedded.port import free_port
from tests.servers.certificates import Certificates
from tests.servers.redis_node import RedisNode

ACL = Path(__file__).parents[2] / "k8s" / "redis-acl.conf"
NOBODYS_PASSWORD = "0" * 64
PASSWORDS = {"quota-authz": "of/the@authz", "quota-flusher": "of the flusher"}
ADMINISTRATOR = ("test-administrator", "of-the-test")


def shipped_users() -> list[str]:
    """The lines of the file that is shipped, with passwords."""
    lines = [line for line in ACL.read_text().splitlines() if line and not line.startswith("#")]
    for user, password in PASSWORDS.items():
        place = next(number for number, line in enumerate(lines) if line.startswith(f"user {user} "))
        lines[place] = lines[place].replace(NOBODYS_PASSWORD, hashlib.sha256(password.encode()).hexdigest())
    return lines


def secured(directory: Path, certificates: Certificates) -> RedisNode:
    """Not started yet; its administrator is the test."""
    port = free_port()
    name, password = ADMINISTRATOR
    lines = [
        "port 0",
        f"tls-port {port}",
        f"tls-cert-file {certificates.server[0]}",
        f"tls-key-file {certificates.server[1]}",
        f"tls-ca-cert-file {certificates.ca}",
        "tls-auth-clients yes",
        *shipped_users(),
        f"user {name} on >{password} ~* &* +@all",
    ]
    login = {
        "username": name,
        "ssl": True,
        "ssl_ca_certs": str(certificates.ca),
        "ssl_certfile": str(certificates.client[0]),
        "ssl_keyfile": str(certificates.client[1]),
    }
    return RedisNode(directory, lines, password=password, port=port, login=login)
