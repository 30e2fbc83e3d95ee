from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from sidecar import address
from sidecar.errors import SettingsInvalid


@pytest.mark.parametrize(
    "text", ["9000", ":9000", "localhost:", "localhost:x", "h:70000", "unix:relative", "h:\uff190"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(SettingsInvalid):
        address.parse(text)


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/run/x", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.1.1.1:1", False),
        ("example.com:1", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(text: str, loopback: bool) -> None:
    assert address.parse(text).loopback is loopback
    assert str(address.parse(text)) == text


def test_a_url_reaches_a_wildcard_through_loopback() -> None:
    assert address.parse("0.0.0.0:9002").url == "http://127.0.0.1:9002"
    assert address.parse("[::]:9002").url == "http://[::1]:9002"
    assert address.parse("[::1]:9002").url == "http://[::1]:9002"


def test_a_taken_port_is_an_error_even_when_its_owner_shares_it() -> None:
    with address.listen("127.0.0.1:0") as other:
        port = other.getsockname()[1]
        with pytest.raises(SettingsInvalid, match="taken by another process"):
            address.reserve(f"127.0.0.1:{port}")


def test_a_reserved_port_is_shared_with_workers_and_takes_no_connection() -> None:
    text, holder = address.reserve("127.0.0.1:0")
    with holder:
        port = address.parse(text).port
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        with address.listen(text), address.listen(text), socket.create_connection(("127.0.0.1", port)):
            pass


def test_a_unix_socket_is_shared_by_its_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "authz.sock"
    text, holder = address.reserve(f"unix:{path}")
    with holder:
        inherited = address.listen(f"fd:{os.dup(address.parse(text).port)}")
        with inherited, socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        with pytest.raises(SettingsInvalid, match="served by another process"):
            address.reserve(f"unix:{path}")


def test_a_stale_unix_socket_is_replaced_and_a_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "authz.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    address.listen(f"unix:{path}").close()
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(SettingsInvalid, match="no socket"):
        address.listen(f"unix:{tmp_path / 'notes'}")
