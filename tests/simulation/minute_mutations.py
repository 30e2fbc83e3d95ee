"""Shortcuts that only limits of seconds and minutes show; mutations.py looks for seeds that notice them."""

from __future__ import annotations

from sidecar.enforcement import account
from sidecar.enforcement.account import Account
from sidecar.enforcement.exchange import ShardExchange
from sidecar.enforcement.limit_state import LimitState
from tests.simulation.patches import Patch, method, script

_SETTLED = "self.ample = self.ample and ample\n"
_MOVED = """\
        for former in account.limits.values():
            if former.lease.ahead is state:
                former.left, state.left = former.left + state.left, 0
"""

waiting_for_the_end_of_an_outage = method(ShardExchange, "_take_over", ("waits = not self.closing", "waits = True"))

OF_MINUTES: dict[str, Patch] = {
    "who stops waits for the end of an outage": waiting_for_the_end_of_an_outage,
    "a lease asked for ahead is spent in the period before": method(
        ShardExchange, "_take_over", (_SETTLED, _SETTLED + _MOVED)
    ),
    "a lease of a period without spending is not reported": method(
        LimitState, "report", ("left = self.left\n", "left = self.left if self._own or not period.small else 0\n")
    ),
    "what follows is taken although its period is over": method(
        account, "taken_ahead", ("if ahead is None or not ahead.period.like(period):", "if ahead is None:")
    ),
    "what was spent of a minute is forgotten when the clock steps back to it": method(
        Account, "_limit", ("if before is not None:", "if False:")
    ),
    "a lease of a minute that came back is given back under another's name": method(
        Account, "replaced", ("state = self.limits.get(departed.id)", "return False")
    ),
    "what was spent of a minute is not told with its lease ahead": method(
        account, "look_ahead", ("if spent is not None:", "if False:")
    ),
    "what is left of a period is carried into the next one": method(
        Account,
        "_limit",
        (
            "fresh.succeed(state, self.exchange.composed_ms)",
            "fresh.succeed(state, self.exchange.composed_ms)\n        fresh.left = max(fresh.left, state.left)",
        ),
    ),
    "a charge goes on with a minute that is over": method(
        Account, "renew", ("over = former.period.over(now_s)", "over = False")
    ),
    "a minute's limit expires with its period": script(
        "sync", ("math.max(end_ms + 60000 - now, 60000)", "math.max(end_ms - now, 1000)")
    ),
}
