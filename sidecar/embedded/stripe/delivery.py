"""Delivering events to webhook endpoints: at least once, in no order, for three days.

Guarantees: an event is delivered until it is answered with 2xx, across restarts of the stand-in too, unless a fault
            says never. The signature is of the moment of sending.
Gives up:   the real spacing of retries, which grows to hours: here it grows from a quarter to ten real seconds.
Source: https://docs.stripe.com/webhooks#behaviors
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from typing import Any

import aiohttp
import msgspec
from msgspec import Struct

from sidecar.embedded.stripe import webhooks
from sidecar.embedded.stripe.account import Account, Object
from sidecar.embedded.stripe.event_log import thin
from sidecar.embedded.stripe.faults import WEBHOOK_KINDS, Faults

KEPT_S = 3 * 86_400
RETRY_S = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
ANSWER_S = 10.0
PARALLEL_MAX = 8
ATTEMPTS_KEPT = 100_000
SUCCESS = 2  # hundred


class Delivery(Struct):
    """One event on its way to one endpoint."""

    event: str
    endpoint: str
    attempts: int = 0
    delivered: bool = False
    given_up: bool = False


class Deliveries:
    """Everything that is on its way, and what became of it."""

    def __init__(self, account: Account, faults: Faults) -> None:
        self._account = account
        self._faults = faults
        self.all: list[Delivery] = []
        self.attempts: deque[dict[str, Any]] = deque(maxlen=ATTEMPTS_KEPT)
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: list[Delivery] = []
        self._session: aiohttp.ClientSession | None = None
        self._turn = asyncio.Semaphore(PARALLEL_MAX)
        account.notify = self._note

    async def start(self) -> None:
        """Go on with what was not delivered yet."""
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_S))
        self._turn = asyncio.Semaphore(PARALLEL_MAX)
        self._account.notify = self.notify
        for delivery in self.all:
            if not delivery.delivered and not delivery.given_up:
                self._begin(delivery)

    async def stop(self) -> None:
        self._account.notify = self._note
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def _note(self, event: Object) -> None:
        """Note the deliveries of an event; they begin with ``start``."""
        self._made(event)

    def _made(self, event: Object) -> list[Delivery]:
        made = [
            Delivery(event["id"], endpoint["id"])
            for endpoint in self._account.table("webhook_endpoint").values()
            if webhooks.wants(endpoint, event)
        ]
        self.all += made
        event["pending_webhooks"] = len(made)
        return made

    def notify(self, event: Object) -> None:
        """Send an event on its way, as the faults say."""
        for delivery in self._made(event):
            fault = self._faults.draw("POST", event["type"], WEBHOOK_KINDS)
            kind = fault.kind if fault else ""
            if kind == "webhook_never":
                delivery.given_up = True
            elif fault is not None and kind == "webhook_reorder":
                # Held back until later events have gone.
                self._held.append(delivery)
                self._spawn(self._release(delivery, fault.seconds))
                continue
            elif fault is not None and kind == "webhook_delay":
                self._begin(delivery, after_s=fault.seconds)
            else:
                for _ in range(fault.times if fault is not None and kind == "webhook_duplicate" else 1):
                    self._begin(delivery)

    def redeliver(self, *, times: int = 1, shuffle_seed: int | None = None, ids: list[str] | None = None) -> int:
        """Send everything again, each event ``times`` times; returns how many deliveries that makes."""
        again = [delivery for delivery in self.all if ids is None or delivery.event in ids] * times
        if shuffle_seed is not None:
            random.Random(shuffle_seed).shuffle(again)
        for delivery in again:
            self._begin(Delivery(delivery.event, delivery.endpoint))
        return len(again)

    async def settle(self, within_s: float) -> bool:
        """Wait until nothing is on its way; whether that was in time."""
        deadline = asyncio.get_running_loop().time() + within_s
        while self._tasks and asyncio.get_running_loop().time() < deadline:
            await asyncio.wait(list(self._tasks), timeout=0.05, return_when=asyncio.FIRST_COMPLETED)
        return not self._tasks

    def _begin(self, delivery: Delivery, after_s: float = 0) -> None:
        self._spawn(self._deliver(delivery, after_s))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _release(self, delivery: Delivery, seconds: float) -> None:
        await asyncio.sleep(seconds * random.random())
        self._held.remove(delivery)
        await self._deliver(delivery, 0)

    async def _deliver(self, delivery: Delivery, after_s: float) -> None:
        await asyncio.sleep(after_s)
        number = 0
        while not await self._attempt(delivery):
            if delivery.given_up:
                return
            await asyncio.sleep(RETRY_S[min(number, len(RETRY_S) - 1)])
            number += 1

    async def _attempt(self, delivery: Delivery) -> bool:
        account = self._account
        event = account.table("event").get(delivery.event) or account.table("v2.core.event").get(delivery.event)
        endpoint = account.table("webhook_endpoint").get(delivery.endpoint)
        if event is None or endpoint is None or self._session is None:
            delivery.given_up = True
            return False
        made: int = event["_created_s"] if "_created_s" in event else event["created"]
        if account.clock.now_s() - made > KEPT_S:
            delivery.given_up = True
            return False
        body = msgspec.json.encode(event if event["object"] == "event" else thin(event))
        header = webhooks.sign(body, endpoint["_secrets"], account.clock.now_s())
        status = 0
        async with self._turn:
            try:
                async with self._session.post(
                    endpoint["url"],
                    data=body,
                    headers={"Stripe-Signature": header, "Content-Type": "application/json; charset=utf-8"},
                    allow_redirects=False,
                ) as answer:
                    status = answer.status
                    await answer.read()
            except (aiohttp.ClientError, TimeoutError, OSError):
                status = 0
        delivery.attempts += 1
        delivered = status // 100 == SUCCESS
        if delivered and not delivery.delivered:
            delivery.delivered = True
            event["pending_webhooks"] = max(event["pending_webhooks"] - 1, 0)
        self.attempts.append({"event": event["id"], "type": event["type"], "url": endpoint["url"], "status": status})
        account.changes += 1
        return delivered

    def told(self) -> dict[str, Any]:
        """What the state shows of deliveries."""
        return {
            "deliveries": self.all,
            "attempts": list(self.attempts),
            "undelivered": sum(not (one.delivered or one.given_up) for one in self.all),
        }
