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
    """What was found, in units of api_calls: by tenant, and of leases by shard.

    ``checked``: checks that a sidecar allowed, or whose answer nobody saw: each may have counted. ``taken_back``: what
    Redis took back of leases, of which it lost at most ``unread`` before a flusher had read it. ``lost``: what the
    ledger has of it; ``units_lost``: what the metric says in all.
    """

    faults: Counter[str]
    book: Mapping[str, Page]
    checked: Mapping[str, int]
    ledger: Mapping[str, int]
    stripe: Mapping[str, int]
    taken_back: Sequence[int]
    unread: Sequence[int]
    lost: Sequence[int]
    units_lost: int
    control: Counter[str]
    problems: list[str]


class Summary(Struct, kw_only=True):
    """The line that is printed. ``over_admitted`` is beyond hard caps and the exception."""

    faults: int
    answered: int
    ledger: int
    stripe: int
    in_flight: int
    over_admitted: int


class Details(Struct, kw_only=True):
    """What a person reads besides. ``excepted`` is beyond hard caps and within the exception.

    ``slack``: how much more than it has the ledger might have of some tenant, and nobody would notice.
    """

    slack: int
    excepted: int
    units_lost: int
    units_taken_back: int
    units_unread: int
    caps_reached: int
    by_kind: dict[str, int]
    answers: dict[str, int]
    control: dict[str, int]
    violations: list[str]


class Verdict(Struct):
    """What a run came to; it holds when there are no violations."""

    summary: Summary
    details: Details


def judge(clients: Sequence[Client], found: Numbers) -> Verdict:
    """Compare what was answered, counted and billed."""
    violations = [*found.problems, *_wrong_leases(found)]
    beyond = [0] * KEYS.shards
    for client in clients:
        shard = KEYS.shard_of(client.tenant)
        violations += (f"{client.tenant} (shard {shard}): {what}" for what in _wrong(client, found))
        if client.cap is not None:
            beyond[shard] += max(0, found.ledger.get(client.tenant, 0) - client.cap)
    answers = sum((page.answers for page in found.book.values()), Counter[str]())
    answered, total = sum(page.allowed for page in found.book.values()), sum(found.ledger.values())
    in_flight = sum(found.checked.values()) - answered
    if not answered <= total <= answered + in_flight:
        violations.append(f"{answered} answered allows, {total} in the ledger, {in_flight} in flight")
    excepted = sum(min(over, taken) for over, taken in zip(beyond, found.taken_back, strict=True))
    over_admitted = sum(beyond) - excepted
    if over_admitted:
        violations.append(f"{over_admitted} over-admitted; by shard {beyond}, taken back {list(found.taken_back)}")
    violations += [
        f"{count} answers {what!r}, which nothing here explains"
        for what, count in answers.items()
        if not what.startswith(EXPECTED)
    ]
    summary = Summary(
        faults=found.faults.total(),
        answered=answered,
        ledger=total,
        stripe=sum(found.stripe.values()),
        in_flight=in_flight,
        over_admitted=over_admitted,
    )
    details = Details(
        slack=max(found.checked.get(client.tenant, 0) - found.ledger.get(client.tenant, 0) for client in clients),
        excepted=excepted,
        units_lost=found.units_lost,
        units_taken_back=sum(found.taken_back),
        units_unread=sum(found.unread),
        caps_reached=sum(1 for page in found.book.values() if page.answers["429 limit_reached"]),
        by_kind=dict(sorted(found.faults.items())),
        answers=dict(answers.most_common()),
        control=dict(found.control.most_common()),
        violations=violations,
    )
    return Verdict(summary, details)


def _wrong(client: Client, found: Numbers) -> list[str]:
    """What is wrong with one tenant."""
    wrong = []
    page, checked = found.book[client.tenant], found.checked.get(client.tenant, 0)
    counted, billed = found.ledger.get(client.tenant, 0), found.stripe.get(client.tenant, 0)
    if not page.allowed <= counted <= checked:
        wrong.append(f"{page.allowed} answered allows, {counted} in the ledger, {checked} checks that may have counted")
    if counted != billed:
        wrong.append(f"{counted} in the ledger, {billed} at Stripe")
    if client.cap is None and page.answers["429 limit_reached"]:
        wrong.append("denied, though it has no cap")
    return wrong


def _wrong_leases(found: Numbers) -> list[str]:
    """What is wrong with the metric of lost leases: a shard that lost no state has to the unit what Redis took back."""
    wrong = [
        f"shard {shard}: {lost} units lost in the ledger, {taken} taken back by Redis, of which it lost {unread} unread"
        for shard, (lost, taken, unread) in enumerate(zip(found.lost, found.taken_back, found.unread, strict=True))
        if not taken - unread <= lost <= taken
    ]
    if found.units_lost != sum(found.lost):
        wrong.append(f"the metric tells of {found.units_lost} units lost, the ledger of {sum(found.lost)}")
    return wrong
