"""Answers remembered by idempotency key.

Guarantees: v1 repeats the first answer for 24 hours, a 500 too; v2 repeats only successes, for 30 days. The same key
            with other parameters, or while its first call still runs, is refused.
Gives up:   nothing is dropped before its time.
Source: https://docs.stripe.com/api/idempotent_requests, https://docs.stripe.com/api-v2-overview
"""

from __future__ import annotations

from collections import OrderedDict

from msgspec import Struct

from sidecar.embedded.stripe.errors import IDEMPOTENCY, Refused

KEY_MAX = 255
KEPT_S = {"v1": 86_400, "v2": 30 * 86_400}


class Remembered(Struct):
    """The first call with a key, and what it was answered once it was."""

    call: str
    created: int
    kept_s: int
    request_id: str
    status: int = 0
    body: bytes = b""


class Idempotency:
    """Keys of one account."""

    def __init__(self) -> None:
        self.known: OrderedDict[str, Remembered] = OrderedDict()

    def begin(self, key: str, call: str, version: str, now_s: int, request_id: str) -> Remembered | None:
        """The answer to repeat, or None when the call shall run; end with ``finish`` or ``forget``."""
        if len(key) > KEY_MAX:
            raise Refused(f"Idempotency-Key may be at most {KEY_MAX} characters.", type=IDEMPOTENCY, executed=False)
        self._expire(now_s)
        found = self.known.get(key)
        if found is not None and now_s - found.created < found.kept_s:
            if found.call != call:
                raise Refused(
                    "Keys for idempotent requests can only be used with the same parameters they were first used "
                    f"with. Try using a key other than '{key}' if you meant to execute a different request.",
                    type=IDEMPOTENCY,
                    executed=False,
                )
            if not found.status:
                raise Refused(
                    "There is currently another in-progress request using this Idempotent Key (that probably means you "
                    f"submitted twice, and the other request is still going through): {key}. Please try again later.",
                    status=409,
                    type=IDEMPOTENCY,
                    code="idempotency_key_in_use",
                    executed=False,
                )
            return found
        self.known[key] = Remembered(call, now_s, KEPT_S[version], request_id)
        self.known.move_to_end(key)
        return None

    def finish(self, key: str, status: int, body: bytes) -> None:
        known = self.known.get(key)
        if known is not None:
            known.status, known.body = status, body

    def forget(self, key: str) -> None:
        """The call did not begin, so its key stays free."""
        self.known.pop(key, None)

    def _expire(self, now_s: int) -> None:
        while self.known:
            key, oldest = next(iter(self.known.items()))
            if now_s - oldest.created < oldest.kept_s:
                return
            del self.known[key]
