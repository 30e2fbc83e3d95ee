"""Journals of dead writers: found, locked, read, and deleted when the ledger has them.

Guarantees: a journal is adopted by one process at a time; a torn record is dropped, every whole one is read. Whatever
            a file holds, what is read from it is something that Redis and the ledger can take.
Gives up:   values that are damaged but possible: they change with every request, so no checksum covers them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sidecar.catalogue.amount import AMOUNT_MAX
from sidecar.errors import JournalUnusable
from sidecar.usage.journal import BLOCK_BYTES, HEADER, HEADER_BYTES, MAGIC, RECORD, RECORD_GRAIN, SUFFIX, key_crc
from sidecar.usage.window import WindowKey

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


WINDOWS_AT_ONCE = 500  # about a millisecond
_WRITER = re.compile(r"[0-9a-f]{16}")


class CountedWindow(NamedTuple):
    """A window and its writer's cumulative value in base units."""

    key: WindowKey
    value: int


class DeadJournal:
    """A journal whose process is gone; holding this object holds the file's lock. It was read to its end once."""

    def __init__(self, path: Path, fd: int, writer: str, count: int) -> None:
        self.path = path
        self.writer = writer
        self.count = count
        self._fd = fd

    def windows(self) -> Iterator[CountedWindow]:
        """Read them, as often as wanted: a million of them would be 300 MiB as objects.

        Raises OSError when the disk fails, and JournalUnusable at the end when there are not as many as at first.
        """
        found = 0
        for window in _windows(self.path, self._fd):
            found += 1
            yield window
        if found != self.count:
            message = f"{self.path}: held {self.count} windows and holds {found} now; something else changes it"
            raise JournalUnusable(message)

    def delete(self) -> None:
        """Delete the file: the ledger has everything in it. Another one that took its name stays."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(self.path.stat(), os.fstat(self._fd)):
                self.path.unlink()
        self.release()

    def release(self) -> None:
        """Let another process adopt it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def adopt(directory: Path) -> Iterator[DeadJournal]:
    """Lock and read every journal in ``directory`` that no living process holds.

    A file that is no journal is left where it is and skipped; ``inspect`` tells what is wrong with it.
    """
    return (found for found in adopt_slowly(directory) if found is not None)


def adopt_slowly(directory: Path) -> Generator[DeadJournal | None]:
    """The same, with a None after every WINDOWS_AT_ONCE windows, for those who have something else to do meanwhile."""
    try:
        names = sorted(entry.path for entry in os.scandir(directory) if entry.name.endswith(SUFFIX))
    except FileNotFoundError:
        return
    for name in names:
        try:
            fd = os.open(name, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another process may have deleted the file between open and lock.
            if os.fstat(fd).st_nlink == 0:
                os.close(fd)
                continue
            path = Path(name)
            writer, count = _writer(path, fd), 0
            for _ in _windows(path, fd):
                count += 1
                if count % WINDOWS_AT_ONCE == 0:
                    yield None
        except (OSError, JournalUnusable):
            os.close(fd)
            continue
        except GeneratorExit:
            os.close(fd)
            raise
        yield DeadJournal(path, fd, writer, count)


def inspect(path: Path) -> tuple[str, list[CountedWindow]]:
    """What a journal holds, of a living process too: its writer id and windows.

    Raises JournalUnusable when the file is missing, cannot be read or is no journal.
    """
    try:
        with path.open("rb") as file:
            return _writer(path, file.fileno()), list(_windows(path, file.fileno()))
    except OSError as error:
        message = f"{path}: {error.strerror}"
        raise JournalUnusable(message) from error


def _writer(path: Path, fd: int) -> str:
    header = os.pread(fd, HEADER.size, 0)
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        if header.strip(b"\0"):
            message = f"{path}: not a journal (it begins with {header[:8]!r}, not {MAGIC!r})"
            raise JournalUnusable(message)
        writer = path.name.removesuffix(SUFFIX)  # the header was lost with the machine's power; its blocks may be there
    else:
        writer = HEADER.unpack(header)[1].decode("ascii", "replace")
    if not _WRITER.fullmatch(writer):
        message = f"{path}: neither its header nor its name says whose journal it is"
        raise JournalUnusable(message)
    return writer


def _windows(path: Path, fd: int) -> Iterator[CountedWindow]:
    position = HEADER_BYTES
    try:
        while block := _block(fd, position):
            yield from _records(block)
            position += BLOCK_BYTES
    except ValueError as error:
        message = f"{path}: a whole record has a key that no version known here writes"
        raise JournalUnusable(message) from error


def _block(fd: int, position: int) -> bytes:
    """A whole block, or what there is of it before the file's end.

    A disk that fails in the middle of a block gives what lies before that, and its error only to whoever reads on.
    """
    block = os.pread(fd, BLOCK_BYTES, position)
    while 0 < len(block) < BLOCK_BYTES:
        more = os.pread(fd, BLOCK_BYTES - len(block), position + len(block))
        if not more:
            break
        block += more
    return block


def _records(block: bytes) -> Iterator[CountedWindow]:
    offset = 0
    while offset + RECORD.size <= len(block):
        size, crc, value, key_bytes = RECORD.unpack_from(block, offset)
        if size == 0 or size % RECORD_GRAIN or offset + size > len(block) or key_bytes > size - RECORD.size:
            return
        key = block[offset + RECORD.size : offset + RECORD.size + key_bytes]
        if crc and crc == key_crc(key) and 0 < value <= AMOUNT_MAX:
            yield CountedWindow(WindowKey.decode(key), value)
        offset += size
