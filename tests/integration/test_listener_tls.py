from __future__ import annotations

import asyncio
import ssl
import subprocess
from pathlib import Path

import pytest

from sidecar.errors import SidecarError
from sidecar.gateway.listener import DecisionListener
from tests.integration.listener_peer import Judge, Peer, check, listening


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A key and a certificate in one file, which is its own authority."""
    path = tmp_path / "both.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    named = ["-subj", "/CN=localhost", "-days", "2", "-keyout", str(path), "-out", str(tmp_path / "certificate.pem")]
    subprocess.run([*made, *named], check=True, capture_output=True)
    with path.open("a") as both:
        both.write((tmp_path / "certificate.pem").read_text())
    return path


def server_context(certificate: Path, verify: ssl.VerifyMode) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.load_verify_locations(certificate)
    context.verify_mode = verify
    return context


def client_context(certificate: Path, *, known: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname = False
    if known:
        context.load_cert_chain(certificate)
    return context


async def test_a_client_certificate_stands_in_for_the_secret(certificate: Path) -> None:
    judge = Judge()
    tls = server_context(certificate, ssl.CERT_REQUIRED)
    async with listening(judge, "0.0.0.0:0", tls=tls) as listener:
        port = int(listener.addresses[0].rpartition(":")[2])
        known = client_context(certificate, known=True)
        peer = Peer(*await asyncio.open_connection("127.0.0.1", port, ssl=known))
        peer.send(check("wait", "slow") + check("acme", "next"))
        await judge.waiting.wait()
        judge.released.set()
        assert [(await peer.answer()).id for _ in range(2)] == ["slow", "next"]
        assert (await peer.ask("nonsense\r\n\r\n")).status == 400
        assert await peer.closed() == b""
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await refused(port, client_context(certificate, known=False))
    assert judge.asked == [("wait", "slow"), ("acme", "next")]


async def refused(port: int, context: ssl.SSLContext) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        writer.write(check().encode())
        if not await asyncio.wait_for(reader.read(1), 5):
            raise ConnectionError
    finally:
        writer.transport.abort()


async def test_tls_that_asks_for_no_certificate_does_not(certificate: Path) -> None:
    listener = DecisionListener(Judge(), tls=server_context(certificate, ssl.CERT_NONE))
    with pytest.raises(SidecarError, match="x-quota-secret"):
        await listener.start(["0.0.0.0:0"])
