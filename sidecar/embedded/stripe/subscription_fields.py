"""The parameters of subscription calls.

Source: https://docs.stripe.com/api/subscriptions
"""

from __future__ import annotations

from sidecar.embedded.stripe import fields, items
from sidecar.embedded.stripe.fields import (
    Fields,
    Kind,
    array,
    boolean,
    choice,
    clearable,
    currency,
    integer,
    nested,
    text,
    word_or,
)

PRORATIONS = choice("always_invoice", "create_prorations", "none")
TRIAL_DAYS_MAX = 730
STATUSES = (
    "active",
    "canceled",
    "incomplete",
    "incomplete_expired",
    "past_due",
    "paused",
    "trialing",
    "unpaid",
)
CANCELLATION = Fields(
    {
        "comment": clearable(text()),
        "feedback": clearable(
            choice(
                "customer_service",
                "low_quality",
                "missing_features",
                "other",
                "switched_service",
                "too_complex",
                "too_expensive",
                "unused",
            )
        ),
    }
)
TRIAL_SETTINGS = Fields(
    {
        "end_behavior": nested(
            Fields({"missing_payment_method": choice("cancel", "create_invoice", "pause")}, ["missing_payment_method"])
        )
    },
    ["end_behavior"],
)
PAYMENT_SETTINGS = Fields(
    {
        "save_default_payment_method": choice("off", "on_subscription"),
        "payment_method_types": clearable(array(text())),
    }
)
ANCHOR = nested(Fields({"type": choice("now", "unchanged")}, ["type"]))
COMMON: dict[str, Kind] = {
    "automatic_tax": nested(Fields({"enabled": boolean}, ["enabled"])),
    "cancel_at": clearable(integer(0)),
    "cancel_at_period_end": boolean,
    "collection_method": choice("charge_automatically", "send_invoice"),
    "days_until_due": integer(0),
    "default_payment_method": clearable(text()),
    "description": clearable(text(500)),
    "metadata": fields.metadata,
    "off_session": boolean,
    "payment_settings": nested(PAYMENT_SETTINGS),
    "proration_behavior": PRORATIONS,
    "trial_end": word_or("now", integer(0)),
    "trial_settings": nested(TRIAL_SETTINGS),
    **fields.EXPAND,
}
CREATE = Fields(
    {
        **COMMON,
        "billing_cycle_anchor": integer(0),
        "billing_mode": nested(Fields({"type": choice("classic", "flexible")}, ["type"])),
        "currency": currency,
        "customer": text(),
        "items": array(items.NEW_KIND, items.COUNT_MAX),
        "payment_behavior": choice("allow_incomplete", "default_incomplete", "error_if_incomplete"),
        "trial_period_days": integer(1, TRIAL_DAYS_MAX),
    },
    ["customer", "items"],
)
UPDATE = Fields(
    {
        **COMMON,
        "billing_cycle_anchor": ANCHOR,
        "cancellation_details": nested(CANCELLATION),
        "items": array(items.CHANGED_KIND, items.COUNT_MAX),
        "pause_collection": clearable(
            nested(
                Fields(
                    {
                        "behavior": choice("keep_as_draft", "mark_uncollectible", "void"),
                        "resumes_at": integer(0),
                    },
                    ["behavior"],
                )
            )
        ),
        "payment_behavior": choice("allow_incomplete", "default_incomplete", "error_if_incomplete"),
    }
)
CANCEL = Fields(
    {"cancellation_details": nested(CANCELLATION), "invoice_now": boolean, "prorate": boolean, **fields.EXPAND}
)
RESUME = Fields({"billing_cycle_anchor": ANCHOR, "proration_behavior": PRORATIONS, **fields.EXPAND})
LIST = Fields(
    {
        "collection_method": choice("charge_automatically", "send_invoice"),
        "customer": text(),
        "price": text(),
        "status": choice(*STATUSES, "all", "ended"),
        **fields.CREATED,
        **fields.PAGE,
    }
)
