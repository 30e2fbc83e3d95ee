"""What is announced while a worker starts or looks something up, and the catalogue that workers keep on disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sidecar.catalogue.load import parse
from sidecar.catalogue.model import Catalogue
from sidecar.embedded import EmbeddedRedis
from sidecar.enforcement.changes import ChangeReader, KeptCatalogue
from sidecar.enforcement.directory import Directory
from sidecar.ledger import keys
from sidecar.telemetry import CoreCounters
from tests.servers.installation import CATALOGUE, Installation, installation


@pytest.fixture
async def inside(
    redis_server: EmbeddedRedis, redis_prefix: str, database: str, tmp_path: Path
) -> AsyncIterator[Installation]:
    async with installation(redis_server.url, redis_prefix, database, tmp_path) as opened:
        yield opened


async def test_a_catalogue_that_changes_while_a_worker_starts_is_not_missed(inside: Installation) -> None:
    store = inside.store
    await store.put_catalogue(1, CATALOGUE)
    await store.announce([("catalogue", "1")])
    core = await inside.core(changes_interval_ms=5_000)
    # The loops have been started and have not had a turn yet: the worker read the catalogue, not the stream.
    await store.put_catalogue(2, CATALOGUE.replace("100", "200"))
    await store.announce([("catalogue", "2")])
    await core.changes.catch_up()
    assert core.enforcer.policy.revision == 2


async def test_a_catalogue_put_by_an_older_flusher_is_not_taken_for_the_one_compiled_before(
    inside: Installation,
) -> None:
    """In a rolling upgrade: it writes revision and text, and leaves what it does not know."""
    await inside.catalogue()
    await inside.flusher().flush()
    core = await inside.core()
    store = inside.store
    text = CATALOGUE.replace("100", "200")
    await store._command("HSET", store.keys.catalogue, "revision", 2, "text", text, "shards", store.keys.shards)
    await store.announce([("catalogue", "2")])
    await core.changes.catch_up()
    assert core.enforcer.policy.revision == 2
    assert core.enforcer.policy.catalogue == parse(text, "revision 2")


async def test_a_catalogue_whose_reading_failed_is_read_again(
    inside: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What checks a text is loaded only then: no descriptor may be free, or an upgrade may have taken the files."""
    store = inside.store
    await store.put_catalogue(1, CATALOGUE)
    core = await inside.core(changes_interval_ms=5_000)
    await core.changes.catch_up()
    await store.put_catalogue(2, CATALOGUE.replace("100", "200"))
    await store.announce([("catalogue", "2")])
    with monkeypatch.context() as patched:
        patched.setattr("sidecar.enforcement.changes.parse", failing)
        with pytest.raises(OSError, match="no descriptor is free"):
            await core.changes.catch_up()
    assert core.enforcer.policy.revision == 1
    await core.changes.catch_up()
    assert core.enforcer.policy.revision == 2


def failing(_text: str, _name: str) -> Catalogue:
    raise OSError("no descriptor is free")


async def test_a_number_that_a_restored_ledger_gave_again_brings_the_new_text(inside: Installation) -> None:
    store = inside.store
    await store.put_catalogue(1, CATALOGUE)
    core = await inside.core(changes_interval_ms=5_000)
    await core.changes.catch_up()
    policy = core.enforcer.policy
    await store.announce([("catalogue", "1")])
    await core.changes.catch_up()
    assert core.enforcer.policy is policy
    text = CATALOGUE.replace("100", "200")
    await store.put_catalogue(1, text)
    await store.announce([("catalogue", "1")])
    await core.changes.catch_up()
    assert core.enforcer.policy.catalogue == parse(text, "revision 1")


async def test_whoever_flushes_a_worker_finds_it_knowing_what_was_announced_before(inside: Installation) -> None:
    store = inside.store
    await store.put_catalogue(1, CATALOGUE)
    core = await inside.core(changes_interval_ms=5_000)
    await core.changes.catch_up()
    await store.put_catalogue(2, CATALOGUE)
    await store.announce([("catalogue", "2")])
    await core.flush()
    assert core.enforcer.policy.revision == 2


async def test_one_projection_and_one_look_are_all_that_a_suspension_of_an_idle_tenant_takes(
    inside: Installation,
) -> None:
    """How long they are apart says tests/unit/test_within_a_second.py."""
    flusher = inside.flusher()
    await inside.catalogue()
    await inside.tenant("idle", "plus")
    await flusher.flush()
    core = await inside.core(changes_interval_ms=5_000)
    await core.changes.catch_up()
    assert (await inside.ask(core, "idle")).allow
    for status, expected in (("suspended", 402), ("active", 200)):
        await inside.tenant("idle", "plus", status=status)
        await flusher.project()
        await core.changes.catch_up()
        async with asyncio.timeout(10):  # the snapshot is read again at once, in the background
            while (await inside.ask(core, "idle")).status != expected:
                await asyncio.sleep(0)


async def test_one_projection_and_one_look_are_all_that_a_revoked_key_takes(inside: Installation) -> None:
    flusher = inside.flusher()
    await inside.catalogue()
    await flusher.flush()
    core = await inside.core(changes_interval_ms=5_000)
    await core.changes.catch_up()
    directory = core.directory
    await inside.tenant("t", "plus")
    async with inside.ledger.transaction() as tx:
        made = (await keys.create(tx, "t", actor="test")).row
    await flusher.project()
    assert await directory.keys.load(made.sha256) == "t"
    async with inside.ledger.transaction() as tx:
        await keys.revoke(tx, made.sha256, actor="test")
    await flusher.project()
    assert directory.keys.tenant_of(made.sha256) == (True, "t")  # not heard yet
    await core.changes.catch_up()
    assert directory.keys.tenant_of(made.sha256) == (False, None)
    assert await directory.keys.load(made.sha256) is None


async def test_one_projection_and_one_look_are_all_that_a_catalogue_takes(inside: Installation) -> None:
    flusher = inside.flusher()
    await inside.catalogue()
    await flusher.flush()
    core = await inside.core(changes_interval_ms=5_000)
    await core.changes.catch_up()
    await inside.catalogue(CATALOGUE + "anonymous_plan: plus\n")
    await flusher.project()
    await core.changes.catch_up()
    assert core.enforcer.policy.catalogue.anonymous_plan == "plus"


async def known(inside: Installation) -> Directory:
    """The directory of a worker that knows the catalogue, and hears of changes only from the test."""
    await inside.catalogue()
    await inside.flusher().flush()
    core = await inside.core(changes_interval_ms=5_000)
    await core.changes.catch_up()
    return core.directory


async def test_a_key_that_changes_while_it_is_looked_up_is_looked_up_again(
    inside: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = await known(inside)
    store = directory._store
    await store.put_key("ab", "acme")
    lookup = store.tenant_of_key

    async def revoked_meanwhile(sha256: str) -> str | None:
        found = await lookup(sha256)
        directory.changed("key", sha256)
        return found

    monkeypatch.setattr(store, "tenant_of_key", revoked_meanwhile)
    assert await directory.keys.load("ab") == "acme"
    assert directory.keys.tenant_of("ab") == (False, None)
    monkeypatch.setattr(store, "tenant_of_key", lookup)
    assert await directory.keys.load("ab") == "acme"
    assert directory.keys.tenant_of("ab") == (True, "acme")


async def test_a_tenant_that_changes_while_it_is_looked_up_for_the_first_time_is_read_again(
    inside: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    await inside.tenant("acme", "free")
    directory = await known(inside)
    store = directory._store
    lookup = store.lookup

    async def changed_meanwhile(*arguments: Any) -> Any:
        found = await lookup(*arguments)
        directory.changed("tenant", "acme")
        return found

    async def looked_up_again(*arguments: Any) -> Any:
        again.set()
        return await lookup(*arguments)

    again = asyncio.Event()
    monkeypatch.setattr(store, "lookup", changed_meanwhile)
    assert await directory.load("acme") is not None
    monkeypatch.setattr(store, "lookup", looked_up_again)
    await again.wait()  # its snapshot may be the one from before the change


def keep_often(path: Path, revision: int) -> int:
    """Keep a catalogue a few hundred times, as workers that read the same announcement do; how often that failed."""
    counters = CoreCounters()
    reader = ChangeReader(None, None, counters, interval_ms=500, kept_at=path)  # type: ignore[arg-type]
    kept = KeptCatalogue(revision, CATALOGUE)
    return sum(not reader._keep(kept) for _ in range(300))


@pytest.mark.parametrize(("routes", "kept"), [("", True), ("routes: [{name: other, match: GET /v2}]\n", False)])
def test_routes_that_did_not_change_are_not_compiled_again(tmp_path: Path, routes: str, *, kept: bool) -> None:
    known = SimpleNamespace(policy=None)
    reader = ChangeReader(known, None, CoreCounters(), interval_ms=500, kept_at=tmp_path / "kept")  # type: ignore[arg-type]
    reader._put_in_force(KeptCatalogue(1, CATALOGUE), keep=False)
    former = known.policy
    reader._put_in_force(KeptCatalogue(2, CATALOGUE + routes), keep=False)
    assert (known.policy.revision, known.policy.routes is former.routes) == (2, kept)


@pytest.mark.parametrize(
    "kept", [b"", b"\xff\xfe", b'{"revision": 1, "text": "\xc3"}', b"[1]", b'{"revision": 1, "text": ": ["}']
)
def test_a_kept_catalogue_that_is_damaged_is_none(tmp_path: Path, kept: bytes) -> None:
    path = tmp_path / "catalogue.json"
    path.write_bytes(kept)
    counters = CoreCounters()
    reader = ChangeReader(None, None, counters, interval_ms=500, kept_at=path)  # type: ignore[arg-type]
    reader._from_disk()
    assert counters.catalogue_revision == 0


def test_workers_that_keep_the_same_catalogue_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.json"
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as workers:
        failures = list(workers.map(keep_often, [path] * 3, [1, 2, 3]))
    assert failures == [0, 0, 0]
    assert [found.name for found in tmp_path.iterdir()] == ["catalogue.json"]


async def test_a_catalogue_that_is_on_its_way_is_not_asked_for(
    inside: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    """As in `sidecar dev`, where workers start in the moment in which the first catalogue is applied."""
    starting = asyncio.create_task(inside.core())
    await asyncio.sleep(0.3)  # a few looks that find none
    await inside.catalogue()
    await inside.flusher().flush()
    await starting
    assert "sidecar catalogue apply" not in caplog.text
    assert "the first catalogue is away" not in caplog.text
