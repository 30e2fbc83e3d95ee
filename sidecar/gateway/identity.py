"""Who asks: from the headers of a check to an Identity.

The catalogue's rules are tried in order and the first that finds something wins. A rule that finds something it
cannot accept refuses the request; it never falls through to the next rule or to the anonymous plan.

What a client may try, and what happens:

* An identity header twice, in whatever case: ``identity_conflict``. One of the two may be the client's own, and
  nobody can say which one the application behind will read.
* The same header folded by a proxy into one line ("victim, me"): a comma in a tenant or user header is a conflict for
  the same reason. Otherwise each made-up "x, me" would be a new tenant with a fresh default plan.
* An alias (``X_Tenant_Id``, ``x.tenant.id``) of an identity header, alone or beside the real one: conflict. CGI and
  WSGI turn both spellings into one variable, so we would count for one tenant while the application serves another.
  Case is no alias: header names have none.
* Both hold for every identity header of the catalogue and for its user header, also when an earlier rule matched.
* Two different identity headers, one a rule: the first rule wins. That is what the order is for.
* Headers ``x-quota-*`` are answers of ours; what a client sends under these names is never read.
* An empty header is one that is not there: that is how gateways blank what they cannot fill.

Guarantees: tenants and users are at most 128 bytes of UTF-8 without control characters; memory is bounded.
Gives up:   verification. Signatures and certificates were checked by the gateway, which strips what clients forge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from sidecar.catalogue.model import Catalogue, IdentityRule
from sidecar.enforcement.decision import Identity
from sidecar.gateway import certificate, token
from sidecar.memo import remember

ID_BYTES_MAX = 128
MEMO_ENTRIES_MAX = 8_192
MEMO_VALUE_BYTES_MAX = 2_048

ANONYMOUS = Identity()
# What rules answer beside an identity; compared with `is`, and never given to the enforcer.
CONFLICT = Identity(user="conflict")
NOT_MINE = Identity(user="not mine")

Found = dict[bytes, bytes]
Rule = Callable[[bytes], Identity]


class IdentityReader:
    """The identity rules of one catalogue, compiled."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._rules: list[tuple[bytes, dict[bytes, Identity], Rule]] = [
            (rule.header.lower().encode(), {}, _compiled(rule)) for rule in catalogue.identity
        ]
        self._user_header = catalogue.user_header.lower().encode()
        self._users: dict[tuple[bytes, Identity], Identity] = {}
        self.headers = frozenset(header for header, _, _ in self._rules) | (
            {self._user_header} if self._user_header else frozenset()
        )

    def identify(self, found: Found) -> Identity:
        """The identity in these headers (by canonical name, none repeated); ANONYMOUS or CONFLICT otherwise."""
        identity = ANONYMOUS
        for header, memo, rule in self._rules:
            value = found.get(header)
            if value:
                identity = memo.get(value) or _learn(memo, rule, value)
                if identity is not NOT_MINE:
                    break
                identity = ANONYMOUS
        user = found.get(self._user_header)
        return self._with_user(identity, user) if user and identity is not CONFLICT else identity

    def _with_user(self, identity: Identity, value: bytes) -> Identity:
        key = (value, identity)
        known = self._users.get(key)
        if known is None:
            user = _id(value)
            known = CONFLICT if user is None else Identity(identity.tenant, identity.key, user)
            if len(value) <= MEMO_VALUE_BYTES_MAX:
                remember(self._users, key, known, MEMO_ENTRIES_MAX)
        return known


def alias_of(name: bytes) -> bytes:
    """The header that a name could be taken for: lower case, with dashes for what servers turn into underscores."""
    return name.lower().replace(b"_", b"-").replace(b".", b"-")


def _learn(memo: dict[bytes, Identity], rule: Rule, value: bytes) -> Identity:
    identity = rule(value)
    # Long values (tokens of many kilobytes) are worked out each time, so that the memo's bytes are bounded too.
    return remember(memo, value, identity, MEMO_ENTRIES_MAX) if len(value) <= MEMO_VALUE_BYTES_MAX else identity


def _compiled(rule: IdentityRule) -> Rule:
    if rule.kind == "api_key":
        return _key_rule(rule.scheme.lower().encode())
    if rule.kind == "jwt":
        return _text_rule(lambda value: token.claim_of(value, rule.claim))
    if rule.kind == "client_cert":
        field = rule.claim or ("Subject" if rule.header == certificate.XFCC else "")
        return _text_rule(lambda value: certificate.field_of(value, field))
    return _header_rule


def _header_rule(value: bytes) -> Identity:
    tenant = _id(value)
    return CONFLICT if tenant is None else Identity(tenant)


def _key_rule(scheme: bytes) -> Rule:
    def key_rule(value: bytes) -> Identity:
        key = value.strip(b" \t")
        if scheme:
            word, _, key = key.partition(b" ")
            key = key.strip(b" \t")
            if word.lower() != scheme:
                return NOT_MINE
        return Identity(key=hashlib.sha256(key).hexdigest()) if key else NOT_MINE

    return key_rule


def _text_rule(read: Callable[[bytes], str | None]) -> Rule:
    """A rule over structured values: None means that nothing in there names a tenant, which is a refusal."""

    def text_rule(value: bytes) -> Identity:
        text = read(value.strip(b" \t"))
        return Identity(text) if text is not None and acceptable(text) else CONFLICT

    return text_rule


def _id(value: bytes) -> str | None:
    """A tenant or user as a plain header names it; None when it must not be believed."""
    try:
        text = value.strip(b" \t").decode()
    except UnicodeDecodeError:
        return None
    return text if "," not in text and acceptable(text) else None


def acceptable(text: str) -> bool:
    """Whether a text can be an id: 1 to 128 bytes and nothing that does not print."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
        return False
    return 0 < size <= ID_BYTES_MAX and text.isprintable() and text == text.strip()
