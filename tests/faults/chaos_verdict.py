"""What must hold after a chaos run, once everything is healed and quiet.

Guarantees: nothing is decided here by anything but numbers; the same numbers give the same verdict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from msgspec import Struct

from sidecar.store.keys import Keyspace
from tests.faults.chaos_place import Client
from tests.faults.chaos_traffic import Page

KEYS = Keyspace()
EXPECTED = ("allowed", "429", "503", "lost", "sidecar away")


class Numbers(Struct, kw_only=True):
    """What was found, in units of api_calls; by tenant where it says so, by shard what Redis took back of leases.

    ``in_flight``: requests whose answer nobody got. ``units_lost``: what the metric says of the documented exception;
    what Redis took back and lost ``unread`` is not in it.
    """

    faults: Counter[str]
    book: Mapping[str, Page]
    ledger: Mapping[str, int]
    stripe: Mapping[str, int]
    in_flight: int
    taken_back: Sequence[int]
    unread: int
    units_lost: int
    control: Counter[str]
    problems: list[str]


class Verdict(Struct, kw_only=True):
    """The line that is printed. ``over_admitted`` is beyond hard caps and the exception, ``excepted`` within it."""

    faults: int
    answered: int
    ledger: int
    stripe: int
    in_flight: int
    over_admitted: int
    excepted: int
    units_lost: int
    units_taken_back: int
    units_unread: int
    caps_reached: int
    by_kind: dict[str, int]
    answers: dict[str, int]
    control: dict[str, int]
    violations: list[str]


def judge(clients: Sequence[Client], found: Numbers) -> Verdict:
    """Compare what was answered, counted and billed."""
    violations = list(found.problems)
    beyond = [0] * KEYS.shards
    for client in clients:
        page, counted = found.book[client.tenant], found.ledger.get(client.tenant, 0)
        shard = KEYS.shard_of(client.tenant)
        violations += (f"{client.tenant} (shard {shard}): {what}" for what in _wrong(client, page, counted, found))
        if client.cap is not None:
            beyond[shard] += max(0, counted - client.cap)
    answers = sum((page.answers for page in found.book.values()), Counter[str]())
    answered, total = sum(page.allowed for page in found.book.values()), sum(found.ledger.values())
    if not answered <= total <= answered + found.in_flight:
        violations.append(f"{answered} answered allows, {total} in the ledger, {found.in_flight} in flight")
    excepted = sum(min(over, taken) for over, taken in zip(beyond, found.taken_back, strict=True))
    over_admitted = sum(beyond) - excepted
    if over_admitted:
        violations.append(f"{over_admitted} over-admitted; by shard {beyond}, taken back {list(found.taken_back)}")
    seen = sum(found.taken_back)
    if not seen - found.unread <= found.units_lost <= seen:
        about = f"{seen}, {found.unread} of them just before it lost its state"
        violations.append(f"the metric tells of {found.units_lost} units lost, Redis of {about}")
    violations += [
        f"{count} answers {what!r}, which nothing here explains"
        for what, count in answers.items()
        if not what.startswith(EXPECTED)
    ]
    return Verdict(
        faults=found.faults.total(),
        answered=answered,
        ledger=total,
        stripe=sum(found.stripe.values()),
        in_flight=found.in_flight,
        over_admitted=over_admitted,
        excepted=excepted,
        units_lost=found.units_lost,
        units_taken_back=seen,
        units_unread=found.unread,
        caps_reached=sum(1 for page in found.book.values() if page.answers["429 limit_reached"]),
        by_kind=dict(sorted(found.faults.items())),
        answers=dict(answers.most_common()),
        control=dict(found.control.most_common()),
        violations=violations,
    )


def _wrong(client: Client, page: Page, counted: int, found: Numbers) -> list[str]:
    """What is wrong with one tenant."""
    wrong = []
    billed = found.stripe.get(client.tenant, 0)
    if not page.allowed <= counted <= page.allowed + found.in_flight:
        wrong.append(f"{page.allowed} answered allows, {counted} in the ledger, {found.in_flight} in flight in all")
    if counted != billed:
        wrong.append(f"{counted} in the ledger, {billed} at Stripe")
    if client.cap is None and page.answers["429 limit_reached"]:
        wrong.append("denied, though it has no cap")
    return wrong
