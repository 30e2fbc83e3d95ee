"""Every endpoint of the stand-in, and which part does what is due."""

from __future__ import annotations

from sidecar.embedded.stripe import (
    checkout,
    customers,
    cycles,
    event_log,
    events,
    invoices,
    invoicing,
    meters,
    payment_methods,
    payments,
    portal,
    prices,
    products,
    schedules,
    stream,
    subscriptions,
    summaries,
    webhooks,
)
from sidecar.embedded.stripe.account import Account
from sidecar.embedded.stripe.call import Routes

ROUTES = Routes(
    [
        *events.ROUTES,
        *stream.ROUTES,
        *summaries.ROUTES,
        *meters.ROUTES,
        *customers.ROUTES,
        *payment_methods.ROUTES,
        *products.ROUTES,
        *prices.ROUTES,
        *subscriptions.ROUTES,
        *schedules.ROUTES,
        *invoices.ROUTES,
        *checkout.ROUTES,
        *portal.ROUTES,
        *event_log.ROUTES,
        *webhooks.ROUTES,
    ]
)


def wire(account: Account) -> None:
    """Tell the account who does its due work, and who answers for what other parts ask."""
    account.runner(cycles.DUE, cycles.due)
    account.runner(invoicing.FINALIZE, payments.finalize_due)
    account.runner(payments.RETRY, payments.retry_due)
    account.runner(checkout.EXPIRE, checkout.expire_due)
    account.runner(stream.PROCESS, stream.process)
    account.accept_and_report = stream.accept_and_report
    account.end_subscription = _end
    account.plan_subscription = _plan
    account.on_customer_deleted.append(_end_all)


def _end(account: Account, identity: str) -> None:
    cycles.end(account, account.table("subscription")[identity], invoice_now=False, prorate=False)


def _plan(account: Account, identity: str) -> None:
    cycles.plan(account, account.table("subscription")[identity])


def _end_all(account: Account, customer: str) -> None:
    for subscription in list(account.table("subscription").values()):
        if subscription["customer"] == customer and subscription["status"] not in cycles.ENDED:
            _end(account, subscription["id"])
