"""Has a tenant's usage sent by the process that sends usage, where it is another one than the one that needs it sent.

Guarantees: whoever asks hears how many deltas Stripe does not have after that, or NobodyFlushes: never that all is sent
            when nobody looked. A request whose taker died is taken by the next; one that nobody waits for any more by
            nobody, since a flush in the middle of the next change could date usage before what bills it.
Gives up:   speed: both sides look a few times a second, which works behind PgBouncer, as notifications would not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Protocol

from sidecar.errors import LedgerUnavailable, SidecarError, StripeBusy
from sidecar.ledger.connection import Ledger
from sidecar.logs import Transition, fields

ASK_EVERY_S = 0.1
LOOK_EVERY_S = 0.5
TAKEN_WITHIN_S = 5.0
TAKEN_AGAIN_S = 25  # a flush of one tenant gives up sooner
ANSWERED_WITHIN_S = 60
AT_ONCE = 2

log = logging.getLogger(__name__)


class FlushTenant(Protocol):
    """Decides what a tenant used and Stripe does not know, and sends it; how many deltas could not be sent."""

    async def __call__(self, tenant: str, /) -> int: ...


class NobodyFlushes(StripeBusy):
    """No process that sends usage answered, so nothing was changed; look whether one with the role flusher runs."""


class Asking:
    """A flush that another process makes."""

    def __init__(
        self, ledger: Ledger, *, taken_within_s: float = TAKEN_WITHIN_S, answered_within_s: float = ANSWERED_WITHIN_S
    ) -> None:
        self._ledger = ledger
        self._taken_within_s = taken_within_s
        self._answered_within_s = answered_within_s

    async def __call__(self, tenant: str, /) -> int:
        """Ask, and wait for the answer."""
        async with self._ledger.transaction() as tx:
            request = await tx.value("ask_for_flush", tenant)
        try:
            return await self._answer(str(request))
        finally:
            with contextlib.suppress(LedgerUnavailable):
                async with self._ledger.transaction() as tx:
                    await tx.rows("forget_flush", str(request))

    async def _answer(self, request: str) -> int:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while True:
            async with self._ledger.transaction() as tx:
                row = await tx.row("flush_answered", request)
            taken, remaining = row if row is not None else (False, None)
            if remaining is not None:
                return int(remaining)
            if loop.time() - began_s > (self._answered_within_s if taken else self._taken_within_s):
                raise NobodyFlushes
            await asyncio.sleep(ASK_EVERY_S)


class Answering:
    """Makes the flushes that other processes ask for."""

    def __init__(self, ledger: Ledger, flush: FlushTenant) -> None:
        self._ledger = ledger
        self._flush = flush
        self._state = Transition(log, "flushes that were asked for")

    async def run(self) -> None:
        """Answer until cancelled, a few at a time: one that has to wait for Stripe holds up no others."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(AT_ONCE):
                tasks.create_task(self._loop())

    async def answer(self) -> bool:
        """Answer the request that waits longest; whether there was one."""
        async with self._ledger.transaction() as tx:
            row = await tx.row("take_flush", TAKEN_AGAIN_S, ANSWERED_WITHIN_S)
        if row is None:
            return False
        request, tenant = row
        try:
            left = await self._flush(str(tenant))
        except LedgerUnavailable:
            raise
        except SidecarError as error:
            # What could not even be looked at counts as usage that was not sent.
            log.warning("usage that was asked for could not be sent", extra=fields(tenant=tenant, cause=str(error)))
            left = 1
        async with self._ledger.transaction() as tx:
            await tx.rows("answer_flush", str(request), left)
        return True

    async def _loop(self) -> None:
        while True:
            busy = False
            try:
                busy = await self.answer()
                self._state.good()
            except SidecarError as error:
                self._state.bad(cause=str(error))
            except Exception as error:
                log.exception("a flush that was asked for failed")
                self._state.bad(cause=type(error).__name__)
            if not busy:
                await asyncio.sleep(LOOK_EVERY_S)
