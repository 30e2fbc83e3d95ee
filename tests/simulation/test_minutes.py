"""What the book of seconds and minutes takes for a violation, and what for an exception."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.simulation.minutes import KEPT_MS, Held, Message, Minutes, kept, read
from tests.simulation.redis import MemoryRedis

NOW_MS = 1_000_000
START_S = 960
END_MS = (START_S + 60) * 1000
NAME = "sc:{s000}:limit:acme:burst:960"
KEY = ("acme", "burst", START_S)


class Book(Minutes):
    """With what it finds; a writer has spent five units by leases."""

    def __init__(self) -> None:
        super().__init__(lambda invariant, _about: self.violations.append(invariant), lambda _text: None)
        self.violations: list[str] = []
        self.own[KEY]["w"] = 5


@pytest.fixture
def book() -> Book:
    return Book()


def keeping(generation: str, **fields: int) -> MemoryRedis:
    """A server that keeps so much; ``c`` and ``l`` are what it heard of the writer and set aside for it."""
    server = MemoryRedis(lambda: NOW_MS, "a" * 40)
    spent, lease = fields.get("c", 0), fields.get("l", 0)
    server.command(b"HSET", (NAME, "g", generation, "spent", spent, "held", lease, "c:w", spent, "l:w", lease))
    return server


def looked(book: Book, server: MemoryRedis, generation: str, *, unheard: bool = False) -> list[str]:
    """What is violated once a server that grants in that generation was looked at."""
    about = Message("other", generation.encode(), granting=True, accepted=True)
    book.look(server, about, [(NAME, KEY, END_MS)], lambda _writer: unheard)
    return book.violations


def test_what_is_spent_has_to_be_heard_of_or_set_aside(book: Book) -> None:
    server = keeping("g1", c=3, l=2)
    assert looked(book, server, "g1") == []
    server.command(b"HSET", (NAME, "l:w", "1"))
    assert looked(book, server, "g1") == ["L1"]


def test_what_an_outage_policy_let_through_needs_no_lease(book: Book) -> None:
    book._unleased[KEY]["w"] = 2
    assert looked(book, keeping("g1", c=1, l=2), "g1") == []
    assert book.total(KEY) == 3


def test_what_nobody_told_after_a_loss_is_an_exception_to_the_unit(book: Book) -> None:
    assert looked(book, keeping("g1", c=5), "g1") == []
    assert looked(book, keeping("g2", c=1), "g2", unheard=True) == []
    assert book.exceptions(KEY) == 4


def test_a_limit_that_is_forgotten_too_early_is_a_violation(book: Book) -> None:
    book.latest_ms = lambda: END_MS + KEPT_MS - 1
    assert looked(book, keeping("g1", c=5), "g1") == []
    assert looked(book, keeping("g1", c=5), "g1") == ["C3"]
    book.latest_ms = lambda: END_MS + KEPT_MS
    assert looked(book, keeping("g1", c=5), "g1") == ["C3"]


def test_the_exception_of_a_lease_that_was_taken_back_is_what_was_spent_of_it(book: Book) -> None:
    server = keeping("g1", c=3, l=2)
    assert looked(book, server, "g1") == []
    server.command(b"HSET", (NAME, "l:w", "0"))
    book.taken_back(KEY, b"g1", "w")
    assert looked(book, server, "g1") == []
    assert book.exceptions(KEY) == 2


def test_a_lease_that_was_taken_back_stays_an_exception_where_it_cannot_be_spent_for_a_while(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = keeping("g1", c=5)
    book.taken_back(KEY, b"g1", "w")
    for left in (2, 0, 2):
        held = {KEY[1:]: {"w": Held(left, 2, told=True)}}
        monkeypatch.setattr(book, "_held", lambda _tenant, held=held: held)
        assert looked(book, server, "g1") == []
    assert book.exceptions(KEY) == 2


@pytest.mark.parametrize(("counted", "found"), [(5, []), (4, ["C3"]), (6, ["C3"])])
def test_what_is_kept_at_the_end_is_what_was_spent(book: Book, counted: int, found: list[str]) -> None:
    about = kept({b"g": b"g1", b"spent": b"%d" % counted, b"c:w": b"%d" % counted})
    book.now = lambda _key: about
    book.check_kept({"w"}, lost_state=False)
    assert book.violations == found


@pytest.mark.parametrize(
    ("said_ms", "wall_ms", "units", "used_up"),
    [
        (START_S * 1000 + 1000, START_S * 1000 + 1000, 3, True),
        (START_S * 1000 + 1000, START_S * 1000 + 999, 3, False),  # it may still be spent
        (END_MS, START_S * 1000 + 1000, 3, False),  # its writer speaks of the minute
        (START_S * 1000 + 1000, START_S * 1000 + 1000, 21, False),  # so much is given back when the second ends
    ],
)
def test_what_little_was_left_of_a_second_is_set_aside_for_nobody_in_the_minute_that_began_with_it(
    book: Book, said_ms: int, wall_ms: int, units: int, *, used_up: bool
) -> None:
    server = keeping("g1", c=5, l=units)
    assert looked(book, server, "g1") == []
    book._ends[KEY]["w"] = said_ms
    book.now = lambda _key: read(server, NAME, b"g1")
    clock = SimpleNamespace(latest_ms=0, wall_ms=lambda: wall_ms)
    worker: Any = SimpleNamespace(core=SimpleNamespace(writer="w"), process=SimpleNamespace(alive=True), clock=clock)
    book.workers = lambda: [worker]
    assert book.used_up(KEY, 5 + units, END_MS) is used_up
    assert not book.used_up(KEY, 5 + units + 1, END_MS)
