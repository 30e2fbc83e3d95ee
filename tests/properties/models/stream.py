"""The stream of changes, in Python: what a reader is told who stopped reading somewhere."""

from __future__ import annotations

Entry = tuple[int, int, str, str]  # life of the stream, number, kind, id
EMPTY: Entry = (-1, 0, "", "")  # where a reader stands that found the stream empty


class Stream:
    """Every life of the stream has numbers of its own, from wherever it began."""

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

    def trim(self, kept: int) -> None:
        self.entries = self.entries[-kept:]

    def after(self, seen: Entry | None, most: int) -> tuple[Entry | None, bool, list[Entry]]:
        """Where the reader stands now, whether it missed something, and what is new to it."""
        if not self.entries:
            return EMPTY, seen not in (None, EMPTY), []
        last = self.entries[-1]
        if seen is None or seen == last:
            return last, False, []
        new = [entry for entry in self.entries if entry[:2] > seen[:2]]
        if new and new[0][0] == seen[0] and new[0][1] == seen[1] + 1:
            return new[:most][-1], False, new[:most]
        return last, True, []
