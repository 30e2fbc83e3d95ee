"""A checked catalogue as bytes, so that a sidecar need not check its text again.

Guarantees: reading takes a hundredth of the time of checking the text, in which a sidecar could decide nothing. What is
            read was made of the very text beside it: a flusher of a version that knows no compiled catalogues replaces
            the text alone.
Gives up:   other versions of this program, which may mean something else by the same fields: they check the text.
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from sidecar import __version__
from sidecar.catalogue.model import Catalogue

_DECODER = msgspec.msgpack.Decoder(tuple[str, bytes, msgspec.Raw])
_CATALOGUE = msgspec.msgpack.Decoder(Catalogue)


def encode(catalogue: Catalogue, text: str) -> bytes:
    """The bytes of the catalogue that ``text`` says, for sidecars of this version."""
    return msgspec.msgpack.encode((__version__, _digest(text), catalogue))


def decode(document: bytes, text: str) -> Catalogue | None:
    """Reverse of ``encode``; None if it is of another version or text, or damaged: then the text says what it is."""
    try:
        version, digest, catalogue = _DECODER.decode(document)
        return _CATALOGUE.decode(catalogue) if (version, digest) == (__version__, _digest(text)) else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()
