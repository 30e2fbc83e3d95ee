"""A catalogue file that is watched: applied when it changes, refused as a whole when it is bad.

Guarantees: a change is seen within a third of a second; a bad file is logged with every problem, once, and the last
            good one stays in force.
Gives up:   a change that leaves inode, size and modification time as they were.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from sidecar import logs
from sidecar.catalogue.doubts import doubts
from sidecar.catalogue.load import parse
from sidecar.child import Component
from sidecar.control import catalogues
from sidecar.errors import CatalogueInvalid, SidecarError
from sidecar.ledger.connection import Ledger

INTERVAL_S = 0.15
ACTOR = "catalogue file"

log = logging.getLogger(__name__)
Mark = tuple[int, int, int]


class CatalogueFile:
    """Watches one file. ``problems`` are those of the file as it is now; empty while it is good.

    ``applied`` is told of every text that was put in force.
    """

    def __init__(self, path: Path, ledger: Ledger, applied: Callable[[str], None] | None = None) -> None:
        self.path = path
        self.problems: list[str] = []
        self._ledger = ledger
        self._applied = applied
        self._seen: Mark | None = None

    def seen(self) -> None:
        """Take the file as it is for applied already."""
        self._seen = self._mark()

    async def apply(self) -> None:
        """Put the file in force; CatalogueInvalid names every problem."""
        mark = self._mark()
        text = self._text()
        async with self._ledger.transaction() as tx:
            version = await catalogues.apply(tx, text, str(self.path), actor=ACTOR)
        self._seen, self.problems = mark, []
        if self._applied is not None:
            self._applied(text)
        log.info("catalogue is in force", extra=logs.fields(file=str(self.path), revision=version.revision))
        for doubt in doubts(parse(text, str(self.path))):
            log.warning("catalogue is doubtful", extra=logs.fields(file=str(self.path), doubt=doubt))

    async def watch(self) -> None:
        """Apply every change, until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self.look()

    async def look(self) -> None:
        """Apply the file if it changed since the last look; nothing that is wrong with it is raised."""
        mark = self._mark()
        if mark == self._seen:
            return
        try:
            await self.apply()
        except CatalogueInvalid as error:
            self._refuse(mark, error.problems)
        except SidecarError as error:
            # The ledger is away: the file is looked at again until it is back.
            log.warning("catalogue could not be applied", extra=logs.fields(cause=str(error)))

    def _refuse(self, mark: Mark | None, problems: list[str]) -> None:
        self._seen, self.problems = mark, problems
        for problem in problems:
            log.error("catalogue is refused, the last good one stays in force", extra=logs.fields(problem=problem))

    def component(self) -> Component:
        """The file in /readyz; never needed to be ready, since the last good one is in force."""
        return Component(ok=not self.problems, required=False, detail="; ".join(self.problems[:3]))

    def _mark(self) -> Mark | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _text(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CatalogueInvalid([f"{self.path}: cannot be read: {error}; name a readable UTF-8 file"]) from error
