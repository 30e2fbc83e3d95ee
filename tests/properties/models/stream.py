"""The stream of changes, in Python: what a reader is told who stopped reading somewhere."""

from __future__ import annotations

Entry = tuple[int, int, str, str]  # life of the stream, number, kind, id
EMPTY: Entry = (-1, 0, "", "")  # where a reader stands that found the stream empty


class Stream:
    """Each life of the stream is on one server; one that begins with nothing has numbers of its own."""

    def __init__(self) -> None:
        self.life = 0
        self.entries: list[Entry] = []

    def announce(self, changes: list[tuple[str, str]], answer: int) -> int:
        """``answer``: what Redis said, which tells where a new life begins."""
        last = self.entries[-1][1] if self.entries else answer - len(changes)
        self.entries += [(self.life, last + 1 + index, *change) for index, change in enumerate(changes)]
        return self.entries[-1][1]

    def lose(self) -> None:
        self.life += 1
        self.entries = []

    def fail_over(self, copy: list[Entry]) -> None:
        """Another server goes on from an older copy; what it adds is of another life, with numbers of the first."""
        self.life += 1
        self.entries = list(copy)

    def trim(self, kept: int) -> None:
        self.entries = self.entries[-kept:]

    def after(self, seen: Entry | None, most: int) -> tuple[Entry | None, bool, list[Entry]]:
        """Where the reader stands now, whether it missed something, and what is new to it."""
        if not self.entries:
            return EMPTY, seen not in (None, EMPTY), []
        last = self.entries[-1]
        if seen is None or seen == last:
            return last, False, []
        if seen not in self.entries:
            return last, True, []
        new = self.entries[self.entries.index(seen) + 1 :][:most]
        return new[-1], False, new
