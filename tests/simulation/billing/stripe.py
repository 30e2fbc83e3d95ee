"""A Stripe in memory: the stand-in's own meter events, identifiers, idempotency and sums, behind a network with faults.

Calls are lost on the way there or back, late, repeated; they are answered 429, or 500 before or after their effect, or
with success although the event is refused in a report later. While it is away it answers nothing at all.

Guarantees: every rule of the stand-in (sidecar/embedded/stripe) holds here, since it is the same code.
Gives up:   the HTTP side, and all but what the forwarder calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from random import Random
from types import SimpleNamespace
from typing import Any

import stripe
from msgspec import json

from sidecar.embedded.stripe import events
from sidecar.embedded.stripe.account import Account
from sidecar.embedded.stripe.errors import Refused
from sidecar.embedded.stripe.events import Told, Unfit
from sidecar.embedded.stripe.idempotency import Idempotency
from sidecar.embedded.stripe.metering import MeterEvent
from tests.simulation.scheduler import Process, VirtualLoop

HOUR_S, DAY_S = 3_600, 86_400
SPANS_S = {"hour": HOUR_S, "day": DAY_S}
ALONE_US = 2_000  # as long a call for a customer and meter lasts, and no other one may begin
LATE_MS_MAX = 18 * 60_000  # shorter than settling waits after a call
ANSWERED_US = 3_000
OK, FAILED = 200, 500

Report = Callable[[str, str, str], None]


class Rates:
    """How many calls of a thousand go wrong in which way."""

    KINDS = (
        "call lost",
        "call late",
        "call repeated",
        "answer lost",
        "busy",
        "error before",
        "error after",
        "reported",
    )

    def __init__(self) -> None:
        self.of = dict.fromkeys(self.KINDS, 0)


class StripeServer:
    """One account. ``counted`` is told of every event that counts, and how long its call was on the way."""

    def __init__(self, loop: VirtualLoop, random: Random, clock: Any, count: Callable[[str], None]) -> None:
        self.account = Account(clock)
        self.rates = Rates()
        self.up = True
        self.lag_ms = 0  # how far summaries are behind
        self.counted: Callable[[MeterEvent, int], None] = lambda _event, _late_ms: None
        self.report: Report = lambda _key, _code, _message: None
        self.burn: Callable[[Process], bool] = lambda _process: False
        self._idempotency = Idempotency()
        self._loop = loop
        self._random = random
        self._count = count
        self._latest_us: dict[tuple[str, str], int] = {}
        self._on_the_way: dict[int, Callable[[], None]] = {}
        self._calls = 0
        self._late_ms = 0
        self._unwanted: set[str] = set()

    def add_meter(self, metric: str) -> str:
        values = {
            "event_name": f"quota_{metric}",
            "status": "active",
            "default_aggregation": {"formula": "sum"},
            "customer_mapping": {"event_payload_key": "stripe_customer_id", "type": "by_id"},
            "value_settings": {"event_payload_key": "value"},
        }
        return str(self.account.add("billing.meter", {"id": f"mtr_{metric}", **values})["id"])

    def add_customer(self, tenant: str) -> str:
        return str(self.account.add("customer", {"id": f"cus_{tenant}"})["id"])

    def api(self, process: Process) -> Any:
        """What a forwarder holds of Stripe: stands in for StripeApi."""
        space = SimpleNamespace

        async def request(method: str, path: str, *, idempotency_key: str, **params: Any) -> None:
            assert (method, path) == ("post", "/v1/billing/meter_events")
            await self._asked(process, lambda: self._event(params, idempotency_key), retold=True)

        async def stream(params: dict[str, Any], options: dict[str, str]) -> None:
            del options
            await self._asked(process, lambda: self._stream(params["events"]), retold=True)

        async def session(params: dict[str, Any], options: dict[str, str]) -> Any:
            del params, options
            return space(authentication_token="token", expires_at="2100-01-01T00:00:00Z")

        async def summaries(meter: str, params: dict[str, Any]) -> Any:
            return await self._asked(process, lambda: self._sums(meter, params), retold=False)

        v1 = space(billing=space(meters=space(event_summaries=space(list_async=summaries))))
        v2 = space(
            billing=space(
                meter_event_session=space(create_async=session), meter_event_stream=space(create_async=stream)
            )
        )
        return space(v1=v1, v2=v2, client=space(raw_request_async=request))

    def hurry(self) -> None:
        """Whatever is on the way arrives now: hours are about to pass at once."""
        for arrive in list(self._on_the_way.values()):
            arrive()

    # Calls.

    def _drawn(self, kind: str) -> bool:
        rate = self.rates.of[kind]
        if rate and self._random.randrange(1000) < rate:
            self._count(f"stripe: {kind}")
            return True
        return False

    async def _asked(self, process: Process, effect: Callable[[], Any], *, retold: bool) -> Any:
        """One call: on its way there, its effect, and on its way back."""
        done: asyncio.Future[Any] = self._loop.create_future()
        if self.burn(process):
            return await done
        if self._drawn("call lost"):
            self._loop.after_us(self._random.choice((2_000, 31_000_000)), _settle, done, _cut(), of=process)
            return await done
        late_ms = self._random.randrange(1_000, LATE_MS_MAX) if retold and self._drawn("call late") else 0
        self._travel(late_ms * 1000 or self._random.randrange(100, ANSWERED_US), late_ms, process, done, effect)
        if retold and self._drawn("call repeated"):
            again_ms = self._random.choice((5, 2_000, LATE_MS_MAX))
            self._travel(self._random.randrange(again_ms * 1000), again_ms, process, None, effect)
        return await done

    def _travel(
        self, us: int, late_ms: int, process: Process, done: asyncio.Future[Any] | None, effect: Callable[[], Any]
    ) -> None:
        self._calls += 1
        call = self._calls

        def arrive() -> None:
            if self._on_the_way.pop(call, None) is not None:
                self._arrive(late_ms, process, done, effect)

        self._on_the_way[call] = arrive
        self._loop.after_us(us, arrive)

    def _arrive(
        self, late_ms: int, process: Process, done: asyncio.Future[Any] | None, effect: Callable[[], Any]
    ) -> None:
        answer: Any
        if not self.up:
            answer = _cut()
        elif self._drawn("busy"):
            answer = _busy("global-rate")
        else:
            self._late_ms = late_ms
            try:
                answer = effect()
            except stripe.StripeError as error:
                answer = error
        if done is None:
            return
        if self._drawn("answer lost"):
            answer = _cut()
        # Handed over as a step of the process: a paused one finds it when it goes on.
        self._loop.after_us(self._random.randrange(100, ANSWERED_US), _settle, done, answer, of=process)

    # Effects.

    def _event(self, params: dict[str, Any], key: str) -> None:
        """A v1 meter event: checked at once; its answer is kept under its idempotency key."""
        told = Told(params["event_name"], params["payload"], params["identifier"], params["timestamp"], "v1")
        self._alone(told)
        try:
            kept = self._idempotency.begin(key, repr(params), "v1", self.account.now, "")
        except Refused as refused:
            raise stripe.IdempotencyError(str(refused), http_status=400) from refused
        if kept is not None:
            status, code = json.decode(kept.body)
            self._answer(status, code, told.identifier, replayed=True)
            return
        if self._drawn("error before"):
            status, code = FAILED, ""
        else:
            code = self._take(told, key)
            status = 400 if code else FAILED if self._drawn("error after") else OK
        self._idempotency.finish(key, status, json.encode((status, code)))
        self._answer(status, code, told.identifier, replayed=False)

    def _answer(self, status: int, code: str, identifier: str, *, replayed: bool) -> None:
        headers = {"Idempotent-Replayed": "true"} if replayed else {}
        if status == FAILED:
            raise stripe.APIError("An error occurred.", http_status=FAILED, headers=headers)
        if code == "duplicate_meter_event":  # v1 says it in words only
            message = f"An event already exists with identifier {identifier}."
            raise _refused(message, "identifier", "", headers)
        if code:
            raise _refused(code, "timestamp", code, headers)

    def _stream(self, told: list[dict[str, Any]]) -> None:
        """A call of the v2 stream: answered first, checked after that."""
        if self._drawn("error before"):
            raise stripe.APIError("An error occurred.", http_status=FAILED)
        for one in told:
            at_s = int(datetime.fromisoformat(one["timestamp"]).timestamp())
            event = Told(one["event_name"], one["payload"], one["identifier"], at_s, "v2")
            code = self._take(event, event.identifier)
            if code:
                self.report(event.identifier, code, code)
        if self._drawn("error after"):
            raise stripe.APIError("An error occurred.", http_status=FAILED)

    def _take(self, told: Told, key: str) -> str:
        """Count an event, or take it and report later that it was refused; the code of what is wrong with it."""
        meter = f"mtr_{told.event_name.removeprefix('quota_')}"
        known = self.account.metering.exists(meter, told.identifier, self.account.now)
        if told.identifier in self._unwanted or (not known and self._drawn("reported")):
            self._unwanted.add(told.identifier)  # whatever is wrong with it is so when it comes again
            self.report(key, "meter_event_customer_not_found", "No such customer")
            return ""
        try:
            event = events.take(self.account, told)
        except Unfit as unfit:
            return unfit.code
        self.counted(event, self._late_ms)
        return ""

    def _alone(self, told: Told) -> None:
        lane = (told.payload["stripe_customer_id"], told.event_name)
        busy = self._loop.now_us - self._latest_us.get(lane, -ALONE_US) < ALONE_US
        self._latest_us[lane] = self._loop.now_us
        if busy:
            raise _busy("resource-specific")

    def _sums(self, meter: str, params: dict[str, Any]) -> Any:
        start, end, window = params["start_time"], params["end_time"], params.get("value_grouping_window")
        metering, customer = self.account.metering, params["customer"]
        before_ms = self.account.clock.now_ms() - self.lag_ms
        spans = [(start, end)]
        if window:
            step = SPANS_S[window]
            series = metering.series.get((meter, customer))
            seconds = series.seconds if series is not None else ()
            starts = sorted({second - second % step for second in seconds if start <= second < end})
            spans = [(first, first + step) for first in starts]
        found = [
            SimpleNamespace(
                aggregated_value=float(metering.total(meter, customer, "sum", first, last, before_ms)),
                start_time=first,
            )
            for first, last in spans
        ]
        return SimpleNamespace(data=found[::-1][: params["limit"]])


def _settle(done: asyncio.Future[Any], answer: Any) -> None:
    if done.done():
        return
    if isinstance(answer, Exception):
        done.set_exception(answer)
    else:
        done.set_result(answer)


def _cut() -> stripe.StripeError:
    return stripe.APIConnectionError("the connection was cut")  # type: ignore[no-untyped-call]


def _refused(message: str, param: str, code: str, headers: dict[str, str]) -> stripe.StripeError:
    return stripe.InvalidRequestError(message, param, code or None, http_status=400, headers=headers)  # type: ignore[no-untyped-call]


def _busy(reason: str) -> stripe.StripeError:
    return stripe.RateLimitError("slow down", http_status=429, headers={"Stripe-Rate-Limited-Reason": reason})
