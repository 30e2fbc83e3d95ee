"""The errors of this program; each names the caller's next move in its docstring."""

from __future__ import annotations

import sys


class SidecarError(Exception):
    """Base of every error this program raises on purpose.

    The docstring of a class is its default message. ``transient`` tells whether trying the same call
    again can help.
    """

    transient = False

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip())


class SettingsInvalid(SidecarError):
    """The settings cannot be used; mend every line that is named."""


class CatalogueInvalid(SidecarError):
    """The catalogue cannot be used; mend every line that is named. The last good one stays in force."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class JsonInvalid(SidecarError):
    """The JSON is not what is expected; send the documented fields."""


class StoreUnavailable(SidecarError):
    """Redis did not answer in time; apply the limit's outage policy and try again later."""

    transient = True


class ParentMissing(StoreUnavailable):
    """Redis does not have the tenant's parent yet, whose limits apply too; try again in a second."""


class StoreRefused(SidecarError):
    """Redis answered, but cannot be used as it is set up; mend the setting that is named."""


class LedgerUnavailable(SidecarError):
    """Postgres did not answer; what was counted waits in Redis. Try again later."""

    transient = True


class LedgerRefused(SidecarError):
    """Postgres answered, but cannot be used as it is set up; mend what is named."""


class StripeUnavailable(SidecarError):
    """Stripe did not answer, or with an error of its own: the call may or may not have taken effect.

    ``status`` is that of the answer, 0 when there was none; ``replayed`` an answer that was given before.
    """

    transient = True

    def __init__(self, message: str | None = None, *, status: int = 0, replayed: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.replayed = replayed


class StripeBusy(StripeUnavailable):
    """Stripe asked to slow down: the call had no effect. Try again later."""

    def __init__(self, message: str | None = None, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class StripeRefused(SidecarError):
    """Stripe refused the call, which had no effect; mend what is named."""

    def __init__(
        self,
        message: str | None = None,
        *,
        status: int = 400,
        code: str = "",
        param: str = "",
        replayed: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.replayed = replayed


class BillingOff(SidecarError):
    """Billing is off: set SIDECAR_STRIPE_KEY (or _FILE) for the role control and start it again."""


class JournalUnusable(SidecarError):
    """The journal file cannot be read or written; see the path and the cause."""


class NotFound(SidecarError):
    """There is no such object; check the name."""


class Conflict(SidecarError):
    """The object exists in another state; read it again and decide anew."""


class EmbeddedServerFailed(SidecarError):
    """An embedded server did not start; see the cause and its log file."""


def complain(error: SidecarError) -> int:
    """Tell a person on stderr why the program ends; returns its exit code."""
    for line in str(error).splitlines() or [type(error).__name__]:
        sys.stderr.write(f"sidecar: {line}\n")
    sys.stderr.flush()
    return 2 if isinstance(error, SettingsInvalid) else int(getattr(error, "code", 1))
