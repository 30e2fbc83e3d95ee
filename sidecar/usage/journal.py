"""The journal: 64-bit counters in a memory-mapped file, one cell a window, one file a writer.

Guarantees: what was added before a process was killed is in the file; a key is written before its cell is used; a
            full disk is an error at growth, never a SIGBUS.
Gives up:   pages the kernel had not written when the machine lost power.

Layout (little endian): a header page with magic and writer id, then blocks of BLOCK_BYTES that are allocated when they
are added. A block is a row of records: size u32, crc u32, value u64, key length u16, key; padded to RECORD_GRAIN. A
size of 0 ends a block's records; a crc of 0 marks a free record of that size. The crc covers the key and is written
last, so that a record is either whole or free.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import struct
from typing import TYPE_CHECKING
from zlib import crc32

from sidecar.errors import JournalUnusable

if TYPE_CHECKING:
    from pathlib import Path

MAGIC = b"QSJOURN1"
HEADER = struct.Struct("<8s16s")
HEADER_BYTES = mmap.ALLOCATIONGRANULARITY
RECORD = struct.Struct("<IIQH")
SIZE = struct.Struct("<I")
CRC = struct.Struct("<I")
KEY_LENGTH = struct.Struct("<H")
BLOCK_BYTES = 1 << 20
RECORD_GRAIN = 32
VALUE_OFFSET = 8
KEY_BYTES_MAX = 4096
SUFFIX = ".journal"
UNNAMED_SUFFIX = ".new"

_indexes: list[int] = []


class Cell:
    """A place in the journal for one counter: ``view[index]`` is its cumulative value, in base units.

    The hot path adds to ``view[index]`` itself; a method call would cost as much again (bench/decision.py).
    """

    __slots__ = ("index", "size", "view")

    def __init__(self, view: memoryview, index: int, size: int) -> None:
        self.view = view
        self.index = index
        self.size = size


def record_bytes(key: bytes) -> int:
    """Size of the record of a key."""
    return -(-(RECORD.size + len(key)) // RECORD_GRAIN) * RECORD_GRAIN


def shared_index(offset: int) -> int:
    """The index of the cell of a record at ``offset``, one object for all blocks: there are very many cells."""
    number = offset // RECORD_GRAIN
    while len(_indexes) <= number:
        _indexes.append((len(_indexes) * RECORD_GRAIN + VALUE_OFFSET) >> 3)
    return _indexes[number]


def key_crc(key: bytes) -> int:
    """Checksum of a record's key; never 0, which marks a free record."""
    return crc32(key) or 1


class Journal:
    """The journal of one writer: hands out cells, takes them back, and grows by whole blocks.

    When the file cannot be written or cannot grow, cells are taken from plain memory: counting goes on, ``durable``
    is False and ``cause`` says why, until the file grew (``regain`` tries it) and every cell in memory was moved there
    or taken back.
    """

    def __init__(self, path: Path, writer: str) -> None:
        self.path = path
        self.writer = writer
        self.cells = 0
        self._cause = ""
        self._losing = False
        self._cells_in_memory = 0
        self._memory_blocks: set[int] = set()
        self._blocks: list[tuple[mmap.mmap, memoryview]] = []
        self._numbers: dict[int, int] = {}  # of blocks, by the id of their view
        self._file_blocks = 0
        self._free: dict[int, list[tuple[int, int]]] = {}
        self._end = BLOCK_BYTES
        self._fd = -1
        self._open()

    @property
    def durable(self) -> bool:
        """Whether everything counted would survive a kill of this process."""
        return not self._losing and not self._cells_in_memory

    @property
    def cause(self) -> str:
        """Why it is not durable; empty when it is."""
        return "" if self.durable else self._cause

    @property
    def size_bytes(self) -> int:
        """Size of all blocks, in the file or in memory."""
        return len(self._blocks) * BLOCK_BYTES

    def cell(self, key: bytes) -> Cell:
        """Append a record for ``key`` (at most KEY_BYTES_MAX bytes) and return its cell, at value 0."""
        if len(key) > KEY_BYTES_MAX:
            message = f"journal key of {len(key)} bytes; at most {KEY_BYTES_MAX} are possible"
            raise JournalUnusable(message)
        size = record_bytes(key)
        free = self._free.get(size)
        if free:
            block, offset = free.pop()
            mapped, view = self._blocks[block]
        else:
            if self._end + size > BLOCK_BYTES:
                self._grow()
            block, offset = len(self._blocks) - 1, self._end
            self._end += size
            mapped, view = self._blocks[block]
            # A record's size is written once: while it is rewritten it may read 0, which would end the block there.
            SIZE.pack_into(mapped, offset, size)
        index = shared_index(offset)
        view[index] = 0
        KEY_LENGTH.pack_into(mapped, offset + 16, len(key))
        mapped[offset + RECORD.size : offset + RECORD.size + len(key)] = key
        CRC.pack_into(mapped, offset + 4, key_crc(key))
        self.cells += 1
        self._cells_in_memory += block in self._memory_blocks
        return Cell(view, index, size)

    def free(self, cell: Cell) -> None:
        """Take a cell back: the ledger has its value and its hour is over."""
        offset = (cell.index << 3) - VALUE_OFFSET
        block = self._numbers[id(cell.view)]
        CRC.pack_into(self._blocks[block][0], offset + 4, 0)
        if self._losing or block not in self._memory_blocks:
            self._free.setdefault(cell.size, []).append((block, offset))
        self.cells -= 1
        self._cells_in_memory -= block in self._memory_blocks

    def regain(self) -> bool:
        """Whether cells in memory can be moved to the file, or soon used there: it has room, or could be given some."""
        if self.durable:
            return False
        if self._losing:
            if self._fd < 0:
                self._open()
            if self._fd < 0 or not self._grow_file():
                return False
            self._end = 0
        for size, places in self._free.items():
            self._free[size] = [place for place in places if place[0] not in self._memory_blocks]
        return True

    def moved(self, key: bytes, cell: Cell) -> Cell:
        """The cell of ``key`` in the file, with the value that it has in memory; one in the file stays where it is."""
        if self._numbers[id(cell.view)] not in self._memory_blocks:
            return cell
        fresh = self.cell(key)
        fresh.view[fresh.index] = cell.view[cell.index]
        self.free(cell)
        return fresh

    def close(self, *, delete: bool) -> None:
        """Close the file; ``delete`` it when the ledger has all of it. Cells must not be used afterwards."""
        for mapped, view in self._blocks:
            view.release()
            mapped.close()
        self._blocks.clear()
        self._close_file(delete=delete)

    def _open(self) -> None:
        """Make the file. It gets its name when it is whole and locked, so that nobody adopts it before."""
        unnamed = self.path.with_suffix(UNNAMED_SUFFIX)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            self._fd = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(self._fd, 0, HEADER_BYTES)
            os.pwrite(self._fd, HEADER.pack(MAGIC, self.writer.encode()), 0)
            unnamed.rename(self.path)
        except OSError as error:
            self._lose(error)
            self._close_file(delete=False)
            with contextlib.suppress(OSError):
                unnamed.unlink()

    def _grow(self) -> None:
        if self._fd < 0 or not self._grow_file():
            self._memory_blocks.add(len(self._blocks))
            self._add(mmap.mmap(-1, BLOCK_BYTES))
        self._end = 0

    def _grow_file(self) -> bool:
        """Add a block to the file; returns whether it had room for it."""
        start = HEADER_BYTES + self._file_blocks * BLOCK_BYTES
        try:
            os.posix_fallocate(self._fd, start, BLOCK_BYTES)
            mapped = mmap.mmap(self._fd, BLOCK_BYTES, offset=start)
        except OSError as error:
            self._lose(error)
            return False
        self._file_blocks += 1
        self._losing = False
        self._add(mapped)
        return True

    def _add(self, mapped: mmap.mmap) -> None:
        view = memoryview(mapped).cast("Q")
        self._numbers[id(view)] = len(self._blocks)
        self._blocks.append((mapped, view))

    def _lose(self, error: OSError) -> None:
        self._losing = True
        self._cause = f"{self.path}: {error.strerror}"

    def _close_file(self, *, delete: bool) -> None:
        if self._fd < 0:
            return
        if delete:
            self.path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = -1
