"""Event summaries of a meter: what a customer used, per hour, per day or at all.

Guarantees: newest first, in pages; only spans in which something arrived, when grouped.
Gives up:   exactness, as the real ones do: the value is a float, and what arrived within ``visibility_s`` is missing.
Source: https://docs.stripe.com/api/billing/meter-event-summary/list
"""

from __future__ import annotations

from decimal import Decimal

from sidecar.embedded.stripe import fields
from sidecar.embedded.stripe.account import Account, Object
from sidecar.embedded.stripe.call import Call, Route
from sidecar.embedded.stripe.errors import Refused, bad_parameter
from sidecar.embedded.stripe.fields import Fields, choice, integer, text
from sidecar.embedded.stripe.listing import cut

SPANS = {"hour": 3_600, "day": 86_400}
MINUTE_S = 60
LIST = Fields(
    {
        "customer": text(),
        "start_time": integer(0),
        "end_time": integer(0),
        "value_grouping_window": choice("day", "hour"),
        **fields.PAGE,
    },
    ["customer", "start_time", "end_time"],
)


def listed(account: Account, call: Call) -> Object:
    values = LIST.read(call.params)
    meter = account.get("billing.meter", call.id, in_path=True)
    customer = account.get("customer", values["customer"], "customer")["id"]
    start, end = values["start_time"], values["end_time"]
    window = values.get("value_grouping_window")
    step = SPANS[window] if window else MINUTE_S
    for name, instant in (("start_time", start), ("end_time", end)):
        if instant % step:
            raise bad_parameter(f"`{name}` must be aligned with {window or 'minute'} boundaries.", name)
    if end <= start:
        raise Refused("`end_time` must be after `start_time`.", param="end_time")
    spans = _spans(account, meter["id"], customer, start, end, SPANS[window]) if window else [(start, end)]
    formula = meter["default_aggregation"]["formula"]
    options = account.options
    before_ms = account.clock.now_ms() - int(options.visibility_s * 1000) if options.visibility_s else 0
    found = []
    for first, last in spans:
        value = account.metering.total(meter["id"], customer, formula, first, last, before_ms)
        found.append(_summary(meter["id"], customer, first, last, value))
    return cut(account, found[::-1], values, f"/v1/billing/meters/{call.id}/event_summaries")


def _spans(account: Account, meter: str, customer: str, start: int, end: int, step: int) -> list[tuple[int, int]]:
    series = account.metering.series.get((meter, customer))
    seconds = series.seconds if series else ()
    starts = sorted({second - second % step for second in seconds if start <= second < end})
    return [(first, first + step) for first in starts]


def _summary(meter: str, customer: str, start: int, end: int, value: Decimal) -> Object:
    return {
        # Stable, so that pages fit together.
        "id": f"mtrusg_test_{customer.removeprefix('cus_')}_{start}_{end}",
        "object": "billing.meter_event_summary",
        "aggregated_value": float(value),
        "end_time": end,
        "livemode": False,
        "meter": meter,
        "start_time": start,
    }


ROUTES = [Route("GET", "/v1/billing/meters/{id}/event_summaries", listed)]
