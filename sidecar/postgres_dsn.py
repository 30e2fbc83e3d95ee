"""What can be said of a Postgres DSN before anybody connects: its scheme, ports, and what it says of TLS.

Guarantees: no message quotes any part of the DSN but a word that no password can be, for it holds passwords.
Gives up:   everything else the driver reads in it; that is told at the first connection.
"""

from __future__ import annotations

import os
from urllib.parse import parse_qs, urlsplit

NAME = "SIDECAR_POSTGRES_DSN"
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
FILES = ("sslrootcert", "sslcert", "sslkey")


def problems(dsn: str) -> list[str]:
    """Everything that is wrong with it, each with what would be right."""
    if not dsn.startswith(("postgres://", "postgresql://")):
        return [f"{NAME} must begin with postgresql://"]
    try:
        parts = urlsplit(dsn)
    except ValueError:
        remedy = "percent-encode what is not a letter or digit in user and password, and name several hosts by names"
        return [f"{NAME} is no URL that the driver can read; {remedy}"]
    found = []
    for host in parts.netloc.rpartition("@")[2].split(","):
        port = host.rpartition("]")[2].partition(":")[2]
        if port and not (port.isascii() and port.isdecimal()):
            found.append(f"{NAME} has a port that is no number; percent-encode '@', ':' and '/' in user and password")
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    mode = options.get("sslmode", "prefer")
    if mode not in SSL_MODES:
        found.append(f"{NAME} has an unknown sslmode; use {', '.join(SSL_MODES)}")
    found += [
        f"{NAME}: there is no file for {name} that this user can read; mend path or rights"
        for name in FILES
        if name in options and not os.access(options[name], os.R_OK)
    ]
    if mode.startswith("verify") and "sslrootcert" not in options:
        found.append(f"{NAME} says sslmode={mode} and not whom to trust; add sslrootcert=/path/of/the/authority.crt")
    return found
