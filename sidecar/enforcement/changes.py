"""Follows what is announced in Redis: changed tenants and keys, and the catalogue in force.

Guarantees: a change is known within the poll interval; a gap in the stream drops what is cached; a catalogue that
            cannot be read is refused as a whole and the last good one stays; the last good one is kept on disk, so that
            a sidecar starts while Redis is away. However much was announced, decisions come between.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from sidecar.catalogue.compiled import decode
from sidecar.catalogue.policy import Policy
from sidecar.catalogue.routes import RouteTable
from sidecar.errors import CatalogueInvalid, StoreRefused, StoreUnavailable
from sidecar.logs import Transition, fields
from sidecar.store.client import CHANGES_READ_MOST

if TYPE_CHECKING:
    from pathlib import Path

    from sidecar.catalogue.model import Catalogue
    from sidecar.enforcement.directory import Directory
    from sidecar.store.client import Store
    from sidecar.telemetry import CoreCounters

log = logging.getLogger(__name__)

APPLIED_AT_ONCE = 128
FIRST_CATALOGUE_POLL_S = 0.1
FIRST_CATALOGUE_TOLD_S = 3


class KeptCatalogue(Struct, frozen=True):
    """The catalogue as it is kept on disk."""

    revision: int
    text: str


def parse(text: str, name: str) -> Catalogue:
    """Check the text of a catalogue; raises CatalogueInvalid.

    Only where nobody compiled it for this version: others need no YAML in their memory, nor in their time to be ready.
    """
    from sidecar.catalogue import load  # noqa: PLC0415

    return load.parse(text, name)


class ChangeReader:
    """Reads the stream of changes every ``interval_ms`` and applies it to the directory."""

    def __init__(
        self, directory: Directory, store: Store, counters: CoreCounters, *, interval_ms: int, kept_at: Path
    ) -> None:
        self._directory = directory
        self._store = store
        self._counters = counters
        self._interval_s = interval_ms / 1000
        self._kept_at = kept_at
        self._last_id = b""
        self._number = 0
        self._catalogue_due = True
        self._text_hash = 0
        self._all_due = self._plans_due = False  # accounts that have to be read again
        self._stream = Transition(log, "the stream of changes")
        self._polling = asyncio.Lock()
        self.problem = ""

    async def first_policy(self) -> None:
        """Wait until there is a catalogue: from Redis, or the one kept on disk when Redis does not answer."""
        waiting = Transition(log, "the first catalogue")
        for looks in itertools.count(1):
            cause = "none was applied yet; run `sidecar catalogue apply FILE`"
            try:
                await self._read_catalogue()
            except (StoreUnavailable, StoreRefused) as error:
                self._from_disk()
                cause = str(error)
            if self._directory.policy is not None:
                return
            if looks * FIRST_CATALOGUE_POLL_S >= FIRST_CATALOGUE_TOLD_S:  # one that was just applied is on its way
                waiting.bad(cause=cause)
            await asyncio.sleep(FIRST_CATALOGUE_POLL_S)

    async def run(self) -> None:
        """Follow the stream."""
        while True:
            try:
                await self.catch_up()
            except (StoreUnavailable, StoreRefused) as error:
                self._stream.bad(cause=str(error))
            else:
                self._stream.good()
            await asyncio.sleep(self._interval_s)

    async def catch_up(self) -> None:
        """Take note of everything that was announced so far. Raises StoreUnavailable or StoreRefused."""
        async with self._polling:
            await self._poll()

    async def _poll(self) -> None:
        while await self._read_on():
            pass
        if self._all_due:
            await self._directory.changed_all()
            self._all_due = False
        if self._catalogue_due:
            await self._read_catalogue()
        if self._plans_due:
            await self._directory.changed_plans()
            self._plans_due = False

    async def _read_on(self) -> bool:
        """Take note of what was announced next; returns whether there may be more.

        What this leads to is noted before the place in the stream moves on: whoever waits for it may give up.
        """
        changes = await self._store.changes(self._last_id, self._number)
        # What was read before the place in the stream was known may have changed since, unannounced to this reader.
        if not self._last_id or changes.gap:
            self._catalogue_due = self._all_due = True
        for first in range(0, len(changes.entries), APPLIED_AT_ONCE):
            for kind, name in changes.entries[first : first + APPLIED_AT_ONCE]:
                if kind == "catalogue":
                    self._catalogue_due = True
                else:
                    self._directory.changed(kind, name)
            await asyncio.sleep(0)  # a decision may come between
        self._last_id, self._number = changes.last_id, changes.number
        return len(changes.entries) == CHANGES_READ_MOST

    async def _read_catalogue(self) -> None:
        found = await self._store.catalogue()
        if found is None:
            if self._directory.policy is None:
                self._from_disk()
            return
        policy = self._directory.policy
        # A restored ledger gives a number again, maybe to another text.
        if policy is None or policy.revision != found.revision or self._text_hash != hash(found.text):
            kept = KeptCatalogue(found.revision, found.text)
            self._put_in_force(kept, keep=True, compiled=decode(found.compiled, found.text))
        self._catalogue_due = False

    def _from_disk(self) -> None:
        try:
            kept = msgspec.json.decode(self._kept_at.read_bytes(), type=KeptCatalogue)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return
        self._put_in_force(kept, keep=False)

    def _put_in_force(self, kept: KeptCatalogue, *, keep: bool, compiled: Catalogue | None = None) -> None:
        try:
            catalogue = compiled or parse(kept.text, f"revision {kept.revision}")
        except CatalogueInvalid as error:
            self.problem = str(error)
            self._counters.catalogue_reload_ok = 0
            log.error("catalogue refused, the last good one stays", extra=fields(problems=error.problems))  # noqa: TRY400
            return
        former = self._directory.policy
        self._text_hash = hash(kept.text)
        same = former is not None and former.catalogue.routes == catalogue.routes
        # Two milliseconds for two hundred rules, in which nothing is decided; seldom are they what changed.
        routes = former.routes if former is not None and same else RouteTable(catalogue.routes)
        self._directory.policy = Policy(catalogue, routes, kept.revision)
        self.problem = ""
        self._counters.catalogue_reload_ok = 1
        self._counters.catalogue_revision = kept.revision
        log.info("catalogue in force", extra=fields(revision=kept.revision))
        self._plans_due = former is not None
        if keep:
            self._keep(kept)

    def _keep(self, kept: KeptCatalogue) -> bool:
        # A name of its own, since workers share the folder and may keep the same catalogue in the same moment.
        fresh = self._kept_at.with_suffix(f".{os.getpid()}.new")
        try:
            fresh.write_bytes(msgspec.json.encode(kept))
            fresh.replace(self._kept_at)
        except OSError as error:
            log.warning("catalogue not kept on disk", extra=fields(cause=str(error)))
            return False
        return True
