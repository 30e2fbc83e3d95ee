"""Whatever moment a process is killed at, and whatever becomes of the file's end, every whole record is read again."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.usage.journal import HEADER_BYTES, RECORD, RECORD_GRAIN, Cell, Journal
from sidecar.usage.recovery import adopt, inspect
from sidecar.usage.window import WindowKey

WRITER = "0123456789abcdef"

KEYS = st.builds(
    WindowKey,
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40),
    st.sampled_from(("api", "tokens@per_user:someone", "m" * 60)),
    st.integers(-(2**31), 2**40),
    st.integers(0, 10**7),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("cell"), KEYS),
        st.tuples(st.just("add"), st.integers(1, 2**40)),
        st.tuples(st.just("free"), st.integers(0, 50)),
    ),
    min_size=10,
    max_size=40,
)
Counts = dict[WindowKey, int]


class Book:
    """A journal, and what it should hold."""

    def __init__(self, directory: Path) -> None:
        self.journal = Journal(directory / f"{WRITER}.journal", WRITER)
        self.cells: dict[WindowKey, Cell] = {}

    @property
    def counts(self) -> Counts:
        return {key: cell.view[cell.index] for key, cell in self.cells.items() if cell.view[cell.index]}

    def do(self, step: tuple[str, Any]) -> None:
        name, argument = step
        if name == "cell" and argument not in self.cells:
            self.cells[argument] = self.journal.cell(argument.encode())
        elif name == "add" and self.cells:
            cell = list(self.cells.values())[argument % len(self.cells)]
            cell.view[cell.index] += argument
        elif name == "free" and self.cells:
            self.journal.free(self.cells.pop(list(self.cells)[argument % len(self.cells)]))


@contextmanager
def book() -> Iterator[Book]:
    with tempfile.TemporaryDirectory() as directory:
        opened = Book(Path(directory))
        yield opened
        opened.journal.close(delete=True)


def recovered(path: Path) -> Counts:
    writer, windows = inspect(path)
    assert writer == WRITER
    assert len({window.key for window in windows}) == len(windows)
    return dict(windows)


@given(steps=STEPS)
@settings(max_examples=60)
def test_a_killed_process_loses_nothing_between_any_two_lines(steps: list[tuple[str, Any]]) -> None:
    with book() as opened:
        path = opened.journal.path
        for step in steps:
            before = opened.counts
            found: list[Counts] = []

            def look(frame: FrameType, event: str, argument: object, found: list[Counts] = found) -> Any:
                if frame.f_code.co_filename.endswith("usage/journal.py"):
                    found.append(recovered(path))
                return look

            tracer = sys.gettrace()
            sys.settrace(look)
            try:
                opened.do(step)
            finally:
                sys.settrace(tracer)
            after = opened.counts
            assert all(counts in (before, after) for counts in found)
            assert recovered(path) == after


@given(steps=STEPS, cut=st.integers(0, 4000))
@settings(max_examples=60)
def test_a_file_cut_short_keeps_what_lies_before_the_cut(steps: list[tuple[str, Any]], cut: int) -> None:
    with book() as opened, tempfile.TemporaryDirectory() as directory:
        for step in steps:
            opened.do(step)
        copy = Path(directory) / f"{WRITER}.journal"
        copy.write_bytes(opened.journal.path.read_bytes()[: HEADER_BYTES + cut])
        whole = {
            key: value
            for key, value in opened.counts.items()
            if (opened.cells[key].index << 3) - 8 + opened.cells[key].size <= cut
        }
        found = recovered(copy)
        assert found.items() >= whole.items()
        assert found.items() <= opened.counts.items()


@given(steps=STEPS, places=st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 255)), min_size=1, max_size=4))
@settings(max_examples=100)
def test_damage_to_keys_costs_their_own_records_only(
    steps: list[tuple[str, Any]], places: list[tuple[int, int]]
) -> None:
    with book() as opened, tempfile.TemporaryDirectory() as directory:
        for step in steps:
            opened.do(step)
        raw = bytearray(opened.journal.path.read_bytes())
        spared = dict(opened.counts)
        for place, flip in places:
            for key, cell in opened.cells.items():
                start = (cell.index << 3) - 8
                first = start + RECORD.size
                if first <= place < first + len(key.encode()):
                    raw[HEADER_BYTES + place] ^= flip
                    spared.pop(key, None)
        copy = Path(directory) / f"{WRITER}.journal"
        copy.write_bytes(raw)
        found = recovered(copy)
        assert found.items() >= spared.items()
        assert found.items() <= opened.counts.items()


@given(raw=st.binary(max_size=3 * RECORD_GRAIN), whole=st.booleans())
@settings(max_examples=100)
def test_any_bytes_in_a_block_are_read_without_an_error(raw: bytes, whole: bool) -> None:
    with book() as opened, tempfile.TemporaryDirectory() as directory:
        path = opened.journal.path
        copy = Path(directory) / f"{WRITER}.journal"
        opened.do(("cell", WindowKey("acme", "api", 0, 1)))
        opened.do(("add", 7))
        kept = path.read_bytes()[: HEADER_BYTES + 2 * RECORD_GRAIN]
        copy.write_bytes(kept + raw if whole else kept[:HEADER_BYTES] + raw)
        found = recovered(copy)
        assert not whole or found[WindowKey("acme", "api", 0, 1)] == 7
        assert [dead.writer for dead in _adopted(Path(directory))] == [WRITER]


def _adopted(directory: Path) -> list[Any]:
    dead = list(adopt(directory))
    for journal in dead:
        journal.release()
    return dead
