"""The journal: cells, reuse, growth, and what happens when the disk says no."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sidecar.errors import JournalUnusable
from sidecar.usage.journal import BLOCK_BYTES, HEADER_BYTES, KEY_BYTES_MAX, Cell, Journal
from sidecar.usage.recovery import inspect
from sidecar.usage.window import Mark, Window, WindowKey
from tests.unit.tenants import account, plan

WRITER = "00000000000000aa"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journals" / f"{WRITER}.journal"


def key(number: int, tenant: str = "acme") -> bytes:
    return WindowKey(tenant, "api", 0, number).encode()


def add(cell: Cell, units: int) -> None:
    cell.view[cell.index] += units


def counts(path: Path) -> dict[int, int]:
    return {window.key.hour: window.value for window in inspect(path)[1]}


def refuse(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill_a_block(journal: Journal, first: int = 0) -> list[Cell]:
    cells = []
    for number in range(BLOCK_BYTES // 4032):
        cells.append(journal.cell(key(first + number, "t" * 3980)))
        add(cells[-1], 1)
    return cells


def test_a_count_is_in_the_file_before_anything_is_closed(path: Path) -> None:
    journal = Journal(path, WRITER)
    cell = journal.cell(key(5))
    add(cell, 3)
    add(cell, 2**40)
    assert inspect(path) == (WRITER, [(WindowKey("acme", "api", 0, 5), 2**40 + 3)])
    journal.close(delete=False)
    assert counts(path) == {5: 2**40 + 3}


def test_a_journal_has_its_name_only_once_it_is_whole_and_locked(path: Path) -> None:
    journal = Journal(path, WRITER)
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    assert journal.durable
    journal.close(delete=True)
    assert not list(path.parent.iterdir())


def test_a_freed_cell_is_used_again_and_forgets_its_count(path: Path) -> None:
    journal = Journal(path, WRITER)
    first, second, third = (journal.cell(key(number)) for number in (1, 2, 3))
    for cell in (first, second, third):
        add(cell, 10)
    journal.free(second)
    assert counts(path) == {1: 10, 3: 10}
    again = journal.cell(key(4))
    assert (again.view, again.index) == (second.view, second.index)
    assert again.view[again.index] == 0
    add(again, 1)
    assert counts(path) == {1: 10, 3: 10, 4: 1}
    assert journal.cells == 3


def test_the_size_of_a_reused_record_is_not_written_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # While it was, it read 0 for a moment, which ends a block: a kill there lost every record behind it.
    journal = Journal(path, WRITER)
    first, second = journal.cell(key(1)), journal.cell(key(2))
    add(second, 10)
    journal.free(first)

    class Untouchable:
        def pack_into(self, *arguments: object) -> None:
            raise AssertionError("the size was written again")

    monkeypatch.setattr("sidecar.usage.journal.SIZE", Untouchable())
    monkeypatch.setattr("sidecar.usage.journal.RECORD", type("R", (), {"size": 18, "pack_into": Untouchable.pack_into}))
    journal.cell(key(3))
    assert counts(path) == {2: 10}


def test_it_grows_by_whole_blocks(path: Path) -> None:
    journal = Journal(path, WRITER)
    assert journal.size_bytes == 0
    cells = fill_a_block(journal)
    assert journal.size_bytes == BLOCK_BYTES
    cells += fill_a_block(journal, first=len(cells))
    assert journal.size_bytes == 2 * BLOCK_BYTES
    assert path.stat().st_size == HEADER_BYTES + 2 * BLOCK_BYTES
    assert path.stat().st_blocks * 512 >= 2 * BLOCK_BYTES
    assert counts(path) == dict.fromkeys(range(len(cells)), 1)


def test_on_a_full_disk_it_counts_in_memory_and_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(path, WRITER)
    safe = fill_a_block(journal)
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    lost = journal.cell(key(1000, "t" * 3980))
    add(lost, 4)
    assert lost.view[lost.index] == 4
    assert not journal.durable
    assert journal.cause == f"{path}: No space left on device"
    assert counts(path) == dict.fromkeys(range(len(safe)), 1)


def test_it_is_durable_again_when_it_grew_and_no_count_is_in_memory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(path, WRITER)
    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", refuse)
        lost = fill_a_block(journal)
    saved = journal.cell(key(1000, "t" * 3980))
    add(saved, 4)
    assert counts(path) == {1000: 4}
    assert not journal.durable
    assert journal.cause
    for cell in lost:
        assert not journal.durable
        journal.free(cell)
    assert journal.durable
    assert journal.cause == ""


def test_a_freed_cell_in_memory_is_not_used_again_once_the_file_grew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(path, WRITER)
    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", refuse)
        lost = fill_a_block(journal)
    journal.cell(key(1000, "t" * 3980))
    for cell in lost:
        journal.free(cell)
    add(journal.cell(key(1001, "t" * 3980)), 1)
    assert journal.durable
    assert counts(path) == {1001: 1}


@pytest.mark.parametrize("begun", [True, False], ids=["full at growth", "full from the start"])
def test_when_there_is_room_again_what_is_in_memory_is_moved_to_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, begun: bool
) -> None:
    journal = Journal(path, WRITER) if begun else None
    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", refuse)
        journal = journal or Journal(path, WRITER)
        lost = {hour: journal.cell(key(hour)) for hour in (1, 2, 3)}
        for hour, cell in lost.items():
            add(cell, hour)
        assert not journal.regain()
    journal.free(lost.pop(1))  # and its place in memory is not used again
    assert journal.regain()
    fresh = {hour: journal.moved(key(hour), cell) for hour, cell in lost.items()}
    add(fresh[2], 40)
    add(journal.cell(key(4)), 4)
    assert counts(path) == {2: 42, 3: 3, 4: 4}
    assert (journal.durable, journal.cause, journal.cells, journal.regain()) == (True, "", 3, False)
    assert journal.moved(key(2), fresh[2]) is fresh[2]


def test_a_disk_that_fills_again_while_windows_are_moved_keeps_them_in_memory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", refuse)
        journal = Journal(path, WRITER)
        lost = fill_a_block(journal) + fill_a_block(journal, 1000)
    assert journal.regain()
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    moved = [
        journal.moved(key(number if number < 260 else 1000 + number - 260, "t" * 3980), cell)
        for number, cell in enumerate(lost)
    ]
    assert [cell.view[cell.index] for cell in moved] == [1] * len(lost)
    assert len(counts(path)) == 260
    assert not journal.durable


def test_nothing_is_moved_while_all_is_in_the_file(path: Path) -> None:
    assert not Journal(path, WRITER).regain()


def test_without_a_file_it_counts_in_memory(tmp_path: Path) -> None:
    (tmp_path / "journals").write_text("not a folder")
    journal = Journal(tmp_path / "journals" / "x.journal", WRITER)
    assert not journal.durable
    cell = journal.cell(key(1))
    add(cell, 2)
    assert cell.view[cell.index] == 2
    assert journal.size_bytes == BLOCK_BYTES
    journal.close(delete=True)


def test_a_disk_that_is_full_from_the_start_leaves_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    journal = Journal(path, WRITER)
    assert not journal.durable
    assert not list(path.parent.iterdir())


def test_another_journal_of_the_same_name_is_never_replaced(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"precious")
    journal = Journal(path, WRITER)
    assert not journal.durable
    journal.close(delete=True)
    assert path.read_bytes() == b"precious"


def test_a_key_that_is_too_long_is_refused_and_changes_nothing(path: Path) -> None:
    journal = Journal(path, WRITER)
    journal.cell(b"k" * KEY_BYTES_MAX)
    with pytest.raises(JournalUnusable, match="4097 bytes; at most 4096"):
        journal.cell(b"k" * (KEY_BYTES_MAX + 1))
    assert journal.cells == 1


def test_the_longest_ids_that_are_let_in_fit_into_a_key() -> None:
    longest = WindowKey("\U0001f600" * 32, "m" * 128 + "@" + "l" * 128 + ":" + "\U0001f600" * 32, -(2**63), 10**12)
    assert len(longest.encode()) < KEY_BYTES_MAX


@pytest.mark.parametrize("series", ["api", "api@per_user:a:b", "api@route:/x y"])
def test_a_window_key_survives_the_journal(series: str) -> None:
    window = WindowKey("org:acme ü", series, -5, 12)
    assert WindowKey.decode(window.encode()) == window


def test_a_window_is_in_the_ledger_only_with_all_it_counted(path: Path) -> None:
    journal = Journal(path, WRITER)
    window = Window(account(), ("api", 0, 1), journal.cell(key(1)))
    window.view[window.index] += 5
    window.acknowledged, window.mark = 5, Mark(8)
    assert window.in_ledger(8)
    assert not window.in_ledger(7)
    window.view[window.index] += 1
    assert not window.in_ledger(8)


def test_cells_at_the_same_place_of_their_blocks_share_its_number(path: Path) -> None:
    journal = Journal(path, WRITER)
    first, again = (fill_a_block(journal, number)[1] for number in (0, 1_000))
    assert first.view is not again.view
    assert first.index is again.index
    journal.free(again)
    assert journal.cell(key(2_000, "t" * 3980)).view is again.view


def test_a_windows_place_in_the_journal_can_be_taken_back(path: Path) -> None:
    journal = Journal(path, WRITER)
    owner = account(plan(tenant="t" * 99))
    cell = journal.cell(WindowKey(owner.tenant, "api", 0, 1).encode())
    window = Window(owner, ("api", 0, 1), cell)
    assert window.key == WindowKey(owner.tenant, "api", 0, 1)
    assert all(getattr(window.cell, name) == getattr(cell, name) for name in Cell.__slots__)
