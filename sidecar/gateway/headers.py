"""Which request headers mean something here, by every spelling that was seen.

Guarantees: a header name costs one dictionary lookup; the memory for spellings is bounded. Repetitions and aliases
            of headers that must be unambiguous are marked as a fault of the request (see identity.py, dialects.py).
"""

from __future__ import annotations

from sidecar.catalogue.model import Catalogue
from sidecar.gateway.dialects import ORIGINAL_HEADERS, Improper
from sidecar.gateway.identity import Found, IdentityReader, alias_of
from sidecar.memo import remember

REQUEST_ID = b"x-request-id"
SECRET = b"x-quota-secret"
EXPECT = b"expect"
TRANSFER_ENCODING = b"transfer-encoding"
UPGRADE = b"upgrade"
# Rare ones that change how the connection goes on; never memoised, so that each is looked at.
SPECIAL = frozenset({EXPECT, TRANSFER_ENCODING, UPGRADE})

# What is wrong with the request, under a key that no header can have.
FAULT = b":fault"
IDENTITY_FAULT = b"identity"
REQUEST_FAULT = b"request"

SPELLINGS_MAX = 1_024
SPELLING_BYTES_MAX = 64


class HeaderIndex:
    """The headers of one catalogue. ``names``: spelling -> canonical name, None for headers that mean nothing."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.identity = IdentityReader(catalogue)
        self._known = {name: name for name in (*self.identity.headers, *ORIGINAL_HEADERS, REQUEST_ID, SECRET)}
        self.names: dict[bytes, bytes | None] = {}

    def canonical(self, spelling: bytes, found: Found) -> bytes | None:
        """Look up a spelling that is not in ``names`` yet; an alias of an identity header is a fault."""
        name = spelling.lower()
        known = self._known.get(name)
        if known is None:
            if name in SPECIAL:
                return name
            if alias_of(name) in self.identity.headers:
                found.setdefault(FAULT, IDENTITY_FAULT)
                return None
        if len(spelling) <= SPELLING_BYTES_MAX:
            remember(self.names, spelling, known, SPELLINGS_MAX)
        return known

    def repeated(self, name: bytes, found: Found) -> None:
        """A header of the index came twice."""
        if name == REQUEST_ID:
            found[name] = b""  # two ids are none: neither can be trusted to tell a retry
        elif name in self.identity.headers:
            found.setdefault(FAULT, IDENTITY_FAULT)
        else:
            found[FAULT] = REQUEST_FAULT


def faulty(found: Found) -> bool:
    """Whether the fault of these headers is an identity conflict; Improper when it is worse."""
    if found[FAULT] == REQUEST_FAULT:
        raise Improper("a header that describes it is repeated")
    return True
