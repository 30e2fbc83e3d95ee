"""Certificates of an authority that is made for a test, as files."""

from __future__ import annotations

from pathlib import Path

import trustme


class Certificates:
    """``ca`` is the authority; of ``server`` (for 127.0.0.1 and localhost) and ``client`` certificate and key."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._authority = trustme.CA()
        self.ca = self._write("ca.pem", self._authority.cert_pem.bytes())
        self.server = self._pair("server", self._authority.issue_cert("127.0.0.1", "localhost"))
        self.client = self._pair("client", self._authority.issue_cert("client@example.com"))

    def of_another_name(self) -> tuple[Path, Path]:
        """A certificate and key of the same authority, for a server called otherwise."""
        return self._pair("other", self._authority.issue_cert("other.example.com"))

    def _pair(self, name: str, issued: trustme.LeafCert) -> tuple[Path, Path]:
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        return self._write(f"{name}.pem", chain), self._write(f"{name}.key", issued.private_key_pem.bytes())

    def _write(self, name: str, content: bytes) -> Path:
        path = self._directory / name
        path.write_bytes(content)
        path.chmod(0o600)
        return path
