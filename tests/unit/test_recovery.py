"""Journals of dead writers: who may adopt them, and what is left alone."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sidecar.errors import JournalUnusable
from sidecar.usage.journal import HEADER_BYTES, Journal
from sidecar.usage.recovery import WINDOWS_AT_ONCE, adopt, adopt_slowly, inspect
from sidecar.usage.window import WindowKey

WRITER = "00000000000000bb"


def dead(directory: Path, units: int = 3, writer: str = WRITER) -> Path:
    journal = Journal(directory / f"{writer}.journal", writer)
    cell = journal.cell(WindowKey("acme", "api", 0, 7).encode())
    cell.view[cell.index] += units
    journal.close(delete=False)
    return journal.path


def test_a_dead_writers_journal_is_adopted_once_and_deleted_when_done(tmp_path: Path) -> None:
    path = dead(tmp_path)
    [found] = list(adopt(tmp_path))
    assert (found.writer, list(found.windows())) == (WRITER, [(WindowKey("acme", "api", 0, 7), 3)])
    assert not list(adopt(tmp_path))
    found.delete()
    found.release()
    assert not path.exists()


def test_a_released_journal_may_be_adopted_by_another(tmp_path: Path) -> None:
    dead(tmp_path)
    [found] = list(adopt(tmp_path))
    windows = list(found.windows())
    found.release()
    [again] = list(adopt(tmp_path))
    assert list(again.windows()) == windows
    again.release()


def test_a_living_writers_journal_is_not_adopted_but_can_be_inspected(tmp_path: Path) -> None:
    journal = Journal(tmp_path / f"{WRITER}.journal", WRITER)
    cell = journal.cell(WindowKey("acme", "api", 0, 7).encode())
    cell.view[cell.index] += 3
    assert not list(adopt(tmp_path))
    assert inspect(journal.path) == (WRITER, [(WindowKey("acme", "api", 0, 7), 3)])
    journal.close(delete=False)
    [found] = list(adopt(tmp_path))
    found.release()


def test_a_journal_that_is_not_yet_named_is_nobodys_to_adopt(tmp_path: Path) -> None:
    (tmp_path / f"{WRITER}.new").write_bytes(b"")
    assert not list(adopt(tmp_path))


def test_a_file_that_is_no_journal_is_left_alone_and_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.journal"
    path.write_text("Dear diary, today we counted again.")
    assert not list(adopt(tmp_path))
    assert path.read_text().startswith("Dear diary")
    with pytest.raises(JournalUnusable, match=r"notes\.journal: not a journal \(it begins with b'Dear dia'"):
        inspect(path)


def test_one_bad_file_does_not_keep_others_from_being_adopted(tmp_path: Path) -> None:
    (tmp_path / "0.journal").write_bytes(b"rubbish")
    (tmp_path / "1.journal").mkdir()
    path = dead(tmp_path)
    raw = bytearray(path.read_bytes())
    foreign = Journal(tmp_path / "00000000000000aa.journal", "00000000000000aa")
    cell = foreign.cell(b"a key of a version to come")
    cell.view[cell.index] += 1
    foreign.close(delete=False)
    [found] = list(adopt(tmp_path))
    assert found.path == path
    found.release()
    with pytest.raises(JournalUnusable, match="a key that no version known here writes"):
        inspect(foreign.path)
    assert raw == path.read_bytes()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(JournalUnusable, match=r"gone\.journal: No such file or directory"):
        inspect(tmp_path / "gone.journal")


def test_counts_survive_a_header_that_was_lost_with_the_power(tmp_path: Path) -> None:
    path = dead(tmp_path)
    raw = path.read_bytes()
    path.write_bytes(bytes(HEADER_BYTES) + raw[HEADER_BYTES:])
    assert inspect(path) == (WRITER, [(WindowKey("acme", "api", 0, 7), 3)])


def test_an_empty_file_is_a_journal_without_counts(tmp_path: Path) -> None:
    (tmp_path / f"{WRITER}.journal").write_bytes(b"")
    [found] = list(adopt(tmp_path))
    assert (found.writer, list(found.windows())) == (WRITER, [])
    found.delete()


def test_a_folder_that_is_not_there_has_no_journals(tmp_path: Path) -> None:
    assert not list(adopt(tmp_path / "nowhere"))


def test_a_count_that_nobody_can_have_reached_is_dropped_and_the_rest_is_read(tmp_path: Path) -> None:
    """Passed on it would be refused by Redis for ever, and no journal behind it would be adopted."""
    journal = Journal(tmp_path / f"{WRITER}.journal", WRITER)
    for hour, units in enumerate((3, 2**53, 2**64 - 1, 4)):
        cell = journal.cell(WindowKey("acme", "api", 0, hour).encode())
        cell.view[cell.index] = units
    journal.close(delete=False)
    assert [value for _, value in inspect(journal.path)[1]] == [3, 4]


@pytest.mark.parametrize(
    "key", [b"a\0b\0" + b"9" * 30 + b"\x001", b"a\0b\x000\x00-1", b"a\0b\x001_0\x001", b"a\0b\x000"]
)
def test_a_whole_record_with_a_key_that_is_none_leaves_the_file_alone(tmp_path: Path, key: bytes) -> None:
    journal = Journal(tmp_path / f"{WRITER}.journal", WRITER)
    cell = journal.cell(key)
    cell.view[cell.index] = 1
    journal.close(delete=False)
    with pytest.raises(JournalUnusable, match="no version known here writes"):
        inspect(journal.path)
    assert not list(adopt(tmp_path))
    assert journal.path.exists()


def test_a_journal_of_nobody_is_left_alone(tmp_path: Path) -> None:
    Journal(tmp_path / f"{WRITER}.journal", "no writer\0\0\0\0\0\0\0").close(delete=False)
    with pytest.raises(JournalUnusable, match="whose journal"):
        inspect(tmp_path / f"{WRITER}.journal")


def test_a_large_journal_is_read_in_pieces_and_let_go_when_nobody_waits_for_its_end(tmp_path: Path) -> None:
    journal = Journal(tmp_path / f"{WRITER}.journal", WRITER)
    for hour in range(2 * WINDOWS_AT_ONCE + 1):
        cell = journal.cell(WindowKey("acme", "api", 0, hour).encode())
        cell.view[cell.index] = 1
    journal.close(delete=False)
    half_read = adopt_slowly(tmp_path)
    assert next(half_read) is None
    assert not list(adopt(tmp_path))
    half_read.close()
    first, second, found = adopt_slowly(tmp_path)
    assert first is second is None
    assert found is not None
    assert found.count == len(list(found.windows())) == len(list(found.windows())) == 2 * WINDOWS_AT_ONCE + 1
    found.release()


def large(directory: Path, windows: int = 2_000) -> Path:
    """A journal of that many windows with one unit each."""
    journal = Journal(directory / f"{WRITER}.journal", WRITER)
    for hour in range(windows):
        cell = journal.cell(WindowKey("acme", "api", 0, hour).encode())
        cell.view[cell.index] = 1
    journal.close(delete=False)
    return journal.path


def test_a_disk_that_fails_in_the_middle_of_a_block_does_not_end_it_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel gives what lies before the bad sector, and its error only to whoever reads on."""
    path, bad, pread = large(tmp_path), HEADER_BYTES + 4_096, os.pread

    def failing(fd: int, size: int, offset: int) -> bytes:
        if offset == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(fd, min(size, bad - offset) if offset < bad else size, offset)

    monkeypatch.setattr(os, "pread", failing)
    assert not list(adopt(tmp_path))
    with pytest.raises(JournalUnusable, match="Input/output"):
        inspect(path)


def test_a_block_that_is_read_in_parts_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, pread = large(tmp_path), os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: pread(fd, min(size, 10_000), offset))
    assert len(inspect(path)[1]) == 2_000


@pytest.mark.parametrize("size", [HEADER_BYTES, HEADER_BYTES + 4_096, HEADER_BYTES + 48])
def test_a_journal_that_was_cut_short_between_two_readings_is_not_taken_for_whole(tmp_path: Path, size: int) -> None:
    path = large(tmp_path)
    [found] = list(adopt(tmp_path))
    os.truncate(path, size)
    with pytest.raises(JournalUnusable, match="held 2000 windows"):
        list(found.windows())
    found.release()


def test_a_file_that_took_a_journals_name_is_not_deleted_in_its_place(tmp_path: Path) -> None:
    path = dead(tmp_path)
    [found] = list(adopt(tmp_path))
    path.rename(tmp_path / "elsewhere")
    dead(tmp_path, units=5)
    found.delete()
    assert [one.value for one in inspect(path)[1]] == [5]
