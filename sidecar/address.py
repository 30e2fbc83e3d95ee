"""Where a listener listens: ``host:port``, ``[v6]:port``, ``unix:/path``, or ``fd:N`` (opened by the supervisor).

Guarantees: several processes can serve one address; a TCP port is shared by SO_REUSEPORT, a ``unix:`` socket by
            inheriting the one descriptor that the supervisor opened.
Gives up:   evenness: the kernel spreads connections, not requests.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from pathlib import Path
from typing import Literal

from msgspec import Struct

from sidecar.errors import SettingsInvalid

BACKLOG = 1024
PATH_BYTES_MAX = 100  # the kernel takes 107; the rest is for a name of ours
PORT_MAX = 65_535
UNIX_MODE = 0o660  # a gateway of the same group may connect, others may not


class Address(Struct, frozen=True):
    """One listener's address; ``host`` and ``port`` for tcp, ``path`` for unix, ``port`` the descriptor for fd."""

    kind: Literal["tcp", "unix", "fd"]
    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        if self.kind != "tcp" or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def url(self) -> str:
        """The address as a client writes it; a wildcard host is reached through loopback."""
        if self.kind != "tcp":
            return f"unix:{self.path}" if self.kind == "unix" else f"fd:{self.port}"
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{self.port}"

    def __str__(self) -> str:
        if self.kind == "tcp":
            return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        return self.url


def parse(text: str) -> Address:
    """Read an address; raises SettingsInvalid with what would be right."""
    if text.startswith("unix:"):
        path = text[5:]
        if not path.startswith("/") or len(path.encode()) > PATH_BYTES_MAX:
            raise SettingsInvalid(f"{text!r} needs an absolute path of at most {PATH_BYTES_MAX} bytes after unix:")
        return Address("unix", path=path)
    if text.startswith("fd:") and text[3:].isdecimal():
        return Address("fd", port=int(text[3:]))
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not host or not (port.isascii() and port.isdecimal()) or int(port) > PORT_MAX:
        raise SettingsInvalid(f"{text!r} is no address; write host:port (127.0.0.1:9000) or unix:/path")
    return Address("tcp", host=host, port=int(port))


def listen(text: str) -> socket.socket:
    """Open a non-blocking listening socket; TCP ports are shared with the other workers (SO_REUSEPORT)."""
    address = parse(text)
    if address.kind == "fd":
        listener = socket.socket(fileno=address.port)
        listener.settimeout(0)
        return listener
    if address.kind == "unix":
        return _listen_unix(address.path)
    listener = bind(address, share=True)
    listener.listen(BACKLOG)
    return listener


def bind(address: Address, *, share: bool) -> socket.socket:
    """Bind a TCP socket without listening; ``share`` decides whether others may bind the port too."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.settimeout(0)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((address.host, address.port))
    except OSError as error:
        bound.close()
        raise SettingsInvalid(_bind_failure(address, error)) from error
    return bound


def reserve(text: str) -> tuple[str, socket.socket]:
    """Claim an address for this program and its workers: the address to give them, and the socket that holds it.

    A port is first bound without sharing, because SO_REUSEPORT would quietly join another sidecar's port. The
    socket kept afterwards never listens, so it takes no connection; it keeps the port ours while workers restart.
    """
    address = parse(text)
    if address.kind == "fd":
        return text, socket.socket(fileno=os.dup(address.port))
    if address.kind == "unix":
        listener = _listen_unix(address.path)
        return f"fd:{listener.fileno()}", listener
    with bind(address, share=False) as probe:
        port = probe.getsockname()[1]
        try:
            probe.listen(1)  # two bound sockets with SO_REUSEADDR do not conflict until one listens
        except OSError as error:
            raise SettingsInvalid(_bind_failure(address, error)) from error
    exact = Address("tcp", host=address.host, port=port)
    return str(exact), bind(exact, share=True)


def _listen_unix(path: str) -> socket.socket:
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.settimeout(0)
        listener.bind(path)
        Path(path).chmod(UNIX_MODE)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise SettingsInvalid(f"cannot listen on unix:{path}: {error.strerror}; check folder and rights") from error
    return listener


def _remove_stale(path: str) -> None:
    """Remove a socket file nobody listens on any more; one that answers belongs to somebody."""
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            raise SettingsInvalid(f"unix:{path} is an existing file that is no socket; choose another path")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.5)
        try:
            probe.connect(path)
        except OSError:
            Path(path).unlink(missing_ok=True)
            return
    raise SettingsInvalid(f"unix:{path} is served by another process; stop it or choose another path")


def _bind_failure(address: Address, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{address} is taken by another process; stop it or choose another port (0 picks a free one)"
    if error.errno == errno.EACCES:
        return f"{address} needs more rights than this user has; choose a port of 1024 or above"
    return f"cannot bind {address}: {error.strerror or error}; check the host"
