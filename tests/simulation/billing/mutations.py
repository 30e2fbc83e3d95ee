"""Shortcuts of what bills; tests/simulation/mutations.py looks for seeds that notice them."""

from __future__ import annotations

import asyncio
import sys
from contextlib import ExitStack
from typing import Any
from unittest import mock

from msgspec import structs

from sidecar.billing.outbox import delta, fate, lanes, outbox, rejection, schedule, settlement
from sidecar.billing.outbox.meter_events import MeterEvents
from sidecar.ledger import epochs
from sidecar.ledger.epochs import Epochs
from sidecar.ledger.shard import ShardTransaction
from tests.simulation.billing import world as billing
from tests.simulation.patches import Patch, at_once, method, replaced


class _Earlier:
    """A transaction that is told of undecided windows what an earlier one saw."""

    def __init__(self, tx: Any, seen: dict[int, list[Any]]) -> None:
        self._tx = tx
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tx, name)

    async def rows(self, name: str, *arguments: Any) -> list[Any]:
        found = list(await self._tx.rows(name, *arguments))
        if name != "undecided_windows":
            return found
        numbers = {tuple(row)[:4]: row["number"] for row in found}
        return [
            type(row)((*tuple(row)[:5], numbers.get(tuple(row)[:4], row["number"] + 1), *tuple(row)[6:]))
            for row in self._seen.pop(arguments[0], found)
        ]


def _decided_outside(stack: ExitStack) -> None:
    """Read what is undecided in one transaction, and write it down in a later one."""
    decide_pass = outbox.Outbox._pass

    async def passed(self: Any, tx: Any, shard: int, tenant: str) -> Any:
        return await decide_pass(self, _Earlier(tx, getattr(self, "seen", {})), shard, tenant)  # type: ignore[arg-type]

    decide = outbox.Outbox.decide

    async def decided(self: Any, shard: int, tenant: str = "") -> int | None:
        async with self._ledger.transaction() as tx:
            state = await tx.row("outbox_state", shard)
            scales = await self.scales.read(tx)
            about = (state["touched_s"], outbox.WINDOWS_PER_PASS, tenant, list(scales), list(state["newcomers"]))
            self.seen = {shard: await tx.rows("undecided_windows", shard, *about)}
        await asyncio.sleep(0.02)
        return await decide(self, shard, tenant)

    stack.enter_context(mock.patch.object(outbox.Outbox, "_pass", passed))
    stack.enter_context(mock.patch.object(outbox.Outbox, "decide", decided))


def _stamped_now(stack: ExitStack) -> None:
    """Stamp deltas with the time at which they are decided, wherever their window lies."""
    place = delta.place

    def now(window: Any, terms: Any, now_s: int) -> Any:
        found = place(window, terms, now_s)
        return None if found is None else structs.replace(found, from_s=now_s, to_s=now_s)

    stack.enter_context(mock.patch.object(delta, "place", now))


def _trusting(stack: ExitStack) -> None:
    """Send from a ledger that was restored as if nothing had happened."""
    forwarder = sys.modules["sidecar.billing.outbox.forwarder"]
    for module in (billing, forwarder):
        stack.enter_context(mock.patch.object(module, "distrust", at_once))


doubting_no_others = method(ShardTransaction, "doubt", ("known = (await self.state()).doubted", "known = True"))

_RENAMED = '(f"{row.identifier}.{row.tries}" if row.tries else row.identifier)'

BILLING: dict[str, Patch] = {
    "a new identifier on retry": method(
        MeterEvents,
        "_one",
        ("identifier=row.identifier,", f"identifier={_RENAMED},"),
        ("idempotency_key(row.identifier,", f"idempotency_key({_RENAMED},"),
    ),
    "a duplicate taken as failure": method(
        fate,
        "_refused",
        ('"repeated", "delivered" if row.first_sent_s else "waiting")', '"refused", "waiting", reason, kept=True)'),
    ),
    "deltas decided outside the transaction": _decided_outside,
    "timestamps past the period": _stamped_now,
    "sent again when Stripe has forgotten the identifier": replaced(schedule, "RETRY_MAX_S", 2**40),
    "sending is not recorded before the call": replaced(lanes, "begin", at_once),
    "a row in doubt taken as not arrived": replaced(
        settlement, "verdicts", lambda _seen, _certain, unknown, _moving=(): ["absent"] * len(unknown)
    ),
    "429 taken as certainly without effect": method(
        fate, "failed", ('"busy", "waiting", reason, slow', '"busy", "waiting", reason, no_effect=True, slow')
    ),
    "a report is overruled by an answer that is recorded after it": method(
        rejection, "rejected", ('await tx.rows("mark_reported", identifier_of(key))', "pass")
    ),
    "what a sum was explained with is sent again on a report": method(
        rejection, "rejected", ("if tries > 1 or summed:", "if tries > 1:")
    ),
    "a restored ledger is trusted": _trusting,
    "nobody vouches for the ledger": replaced(Epochs, "vouches", lambda *_: True),
    "what Redis said days ago vouches for the ledger": replaced(epochs, "VOUCHED_MS", 2**60),
    "a restored ledger is compared only where its epoch shows it": doubting_no_others,
}
