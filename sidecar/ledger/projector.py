"""Projects what the ledger says of tenants, keys and the catalogue to Redis.

Guarantees: a limit that is new or changed starts from what its period has already used: the ledger first, then one
            script that rebuilds the limit and publishes the revision (docs/protocol.md).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from sidecar.catalogue import compiled
from sidecar.catalogue.load import parse
from sidecar.catalogue.period import bounds
from sidecar.catalogue.snapshot import Snapshot
from sidecar.errors import CatalogueInvalid, NotFound, StoreUnavailable
from sidecar.ledger import plans, projection
from sidecar.ledger.spans import Span
from sidecar.logs import fields
from sidecar.store import snapshots
from sidecar.store.client import MOVED_ON
from sidecar.store.messages import Publication

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.catalogue.model import Catalogue
    from sidecar.clock import Clock
    from sidecar.ledger.plans import PlanVersion
    from sidecar.ledger.shard import ShardTransaction
    from sidecar.ledger.tenants import TenantRow
    from sidecar.ledger.transaction import Transaction
    from sidecar.store.client import Store
    from sidecar.store.messages import Collected

log = logging.getLogger(__name__)

TENANTS_PER_ROUND = 500
PUBLISHED_AT_ONCE = 25  # one or two milliseconds of Redis' time
KEYS_AT_ONCE = 16
# More than a ledger gives between its backups; doubles, which they are in Redis, have room for a million such steps.
REVISIONS_LEFT_BEHIND = 2**32


class Projector:
    """Keeps the parsed catalogue of the newest revision between calls."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._version = plans.NO_VERSION  # of the parsed catalogue
        self._catalogue: Catalogue | None = None
        self._told: tuple[int, int] | None = None  # what Redis was seen to have
        self._doubted = False

    def doubt(self) -> None:
        """The ledger was restored from a backup: a number that is given again may stand for another catalogue."""
        self._version = plans.NO_VERSION
        self._doubted = True

    async def catalogue(self, tx: Transaction) -> list[tuple[str, str]]:
        """Give Redis the catalogue in force, if it has another one; returns what to announce."""
        found = await plans.in_force(tx)
        same = found[0] == await self._store.catalogue_revision() and self._told in {None, found}
        if same and not self._doubted:
            self._told = found
            return []
        version = await plans.current(tx)
        if version is None:
            return []
        await self._store.put_catalogue(version.revision, version.document, self._compiled(version, found))
        await plans.mark_projected(tx, version.revision)
        self._told = found
        self._doubted = False
        return [("catalogue", str(version.revision))]

    def _compiled(self, version: PlanVersion, found: tuple[int, int]) -> bytes:
        """The same for sidecars of this version, which need not check it again; nothing if it cannot be read."""
        try:
            self._catalogue = parse(version.document, f"revision {version.revision}")
        except CatalogueInvalid:
            return b""
        self._version = found if found[0] == version.revision else plans.NO_VERSION
        return compiled.encode(self._catalogue, version.document)

    async def newcomers(self, tx: Transaction) -> tuple[str, str]:
        """Plans of tenants that were counted before anybody put them: by default, and of requests without identity."""
        try:
            catalogue = await self._parsed(tx, await self._in_force(tx))
        except NotFound:
            return "", ""
        return catalogue.default_plan, catalogue.anonymous_plan

    async def keys(self, tx: ShardTransaction) -> list[tuple[str, str]]:
        """Give Redis the API keys of a shard that changed; returns what to announce."""
        announced: list[tuple[str, str]] = []
        while changed := await tx.pending_keys(TENANTS_PER_ROUND):
            for first in range(0, len(changed), KEYS_AT_ONCE):
                some = changed[first : first + KEYS_AT_ONCE]
                await asyncio.gather(
                    *(self._store.put_key(key.sha256, None if key.revoked_s else key.tenant) for key in some)
                )
            announced += [("key", key.sha256) for key in changed]
            await tx.mark_keys_projected(changed)
        return announced

    async def tenants(
        self, tx: ShardTransaction, collected: Collected, version: int
    ) -> tuple[list[tuple[str, str]], bool]:
        """Publish the pending tenants of a shard, with what their limits have used.

        ``version``: the ledger has all window changes up to it. Returns what to announce, and whether none is left for
        the next pass. Raises NotFound while there is no catalogue, StoreUnavailable when Redis moved on (the next pass
        starts over).
        """
        in_force = await self._in_force(tx)
        await self._parsed(tx, in_force)
        announced: list[tuple[str, str]] = []
        while pending := await tx.pending_tenants(TENANTS_PER_ROUND):
            # The catalogue of the very read that found them pending: one applied meanwhile makes them pending again.
            revision = pending[0].catalogue
            if revision != in_force[0]:
                in_force = await self._in_force(tx)
            catalogue = await self._parsed(tx, in_force if in_force[0] == revision else (revision, 0))
            found = [_resolved(catalogue, row) for row in pending]
            resolved = [one for one in found if isinstance(one, Snapshot)]
            published = await self._publish(tx, collected, version, resolved)
            await tx.mark_projected(published)
            await projection.pass_over(tx, [one for one in found if not isinstance(one, Snapshot)])
            announced += [("tenant", snapshot.tenant) for snapshot in published]
            if len(published) < len(resolved):
                return announced, False
            if len(pending) < TENANTS_PER_ROUND:
                break
        return announced, True

    async def _publish(
        self, tx: ShardTransaction, collected: Collected, version: int, found: Sequence[Snapshot]
    ) -> list[Snapshot]:
        older = await self._older(tx, found, collected.first_direct_hour)
        standing: list[int] = []
        for first in range(0, len(found), PUBLISHED_AT_ONCE):
            standing += await self._store.publish(
                tx.shard,
                [
                    Publication(
                        snapshot.tenant,
                        snapshot.rev,
                        snapshots.encode(snapshot),
                        snapshots.script_limits(snapshot),
                        older.get(snapshot.tenant, []),
                    )
                    for snapshot in found[first : first + PUBLISHED_AT_ONCE]
                ],
                collected,
                version=version,
            )
        if MOVED_ON in standing:
            raise StoreUnavailable("Redis moved on while tenants were published")
        forgotten = [(one, rev) for one, rev in zip(found, standing, strict=True) if rev > one.rev]
        for snapshot, rev in forgotten:
            # Redis has a revision that this ledger never gave: it was restored from a backup. What it says now counts.
            await tx.rows("outrun_revision", snapshot.tenant, rev, REVISIONS_LEFT_BEHIND)
        return [one for one, rev in zip(found, standing, strict=True) if rev == one.rev]

    async def _older(
        self, tx: ShardTransaction, found: Sequence[Snapshot], first_direct_hour: int
    ) -> dict[str, list[str | int]]:
        """What each limit had used in windows before ``first_direct_hour``: id, start, units and end (ms), per tenant.

        Only the period that contains that hour's start has both older and newer windows.
        """
        instant_s = first_direct_hour * 3600
        spans: list[Span] = []
        about: list[tuple[str, str, int, int]] = []
        for snapshot in found:
            for rule in snapshot.limits:
                start_s, end_s = bounds(rule.period, instant_s, snapshot.anchor_s, snapshot.interval_months)
                if rule.period in ("second", "minute", "hour") or start_s >= instant_s:
                    continue
                scoped = rule.name if rule.scope != "tenant" else ""
                period_s = start_s if rule.period == "billing" else None
                spans.append(Span(snapshot.tenant, rule.metric, scoped, start_s // 3600, first_direct_hour, period_s))
                about.append((snapshot.tenant, rule.name, start_s, end_s * 1000))
        older: dict[str, list[str | int]] = {}
        for total in await tx.totals(spans) if spans else []:
            tenant, name, start_s, end_ms = about[total.index]
            if total.amount:
                older.setdefault(tenant, []).extend((total.scope or name, start_s, total.amount, end_ms))
        return older

    async def _in_force(self, tx: Transaction) -> tuple[int, int]:
        """The version in force; NotFound before the first."""
        found = await plans.in_force(tx)
        if found == plans.NO_VERSION:
            raise NotFound("no catalogue was applied yet; run `sidecar catalogue apply FILE`")
        return found

    async def _parsed(self, tx: Transaction, found: tuple[int, int]) -> Catalogue:
        """The catalogue of a version; read again only when it is another one than last time."""
        if self._catalogue is not None and found == self._version:
            return self._catalogue
        version = await plans.get(tx, found[0])
        try:
            self._catalogue = parse(version.document, f"revision {version.revision}")
        except CatalogueInvalid as error:
            # It was valid when it was applied: a newer program reads it differently. The last one stays in force.
            if self._catalogue is None:
                raise
            log.warning("the applied catalogue cannot be read", extra=fields(cause=str(error)))
        self._version = found
        return self._catalogue


def _resolved(catalogue: Catalogue, row: TenantRow) -> Snapshot | TenantRow:
    """The tenant's snapshot; the row itself, and a log line, where there is no plan for it: it must not stop others."""
    try:
        return projection.snapshot(catalogue, row)
    except NotFound as error:
        log.warning("tenant cannot be resolved", extra=fields(tenant=row.tenant, cause=str(error)))
        return row
