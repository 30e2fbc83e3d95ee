"""Shortcuts that the protocol must not take, each put into the code on purpose: the simulation has to notice.

    python -m tests.simulation.mutations [--seeds 2000] [--from N] [--only NAME]

Prints one JSON line: for each mutation the number of seeds until it was caught, or null. The seeds that caught them are
kept in caught.json, for the test that runs in every suite.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import multiprocessing.pool
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from sidecar.enforcement.adoption import Adoption
from sidecar.enforcement.core import Core
from sidecar.enforcement.exchange import ShardExchange
from sidecar.enforcement.kept import Kept
from sidecar.enforcement.synchroniser import Synchroniser
from sidecar.ledger import flusher
from sidecar.ledger.epochs import Epochs
from sidecar.ledger.flusher import Flusher
from sidecar.ledger.projector import Projector
from sidecar.usage.journal import SUFFIX
from sidecar.usage.recovery import inspect as inspect_journal
from sidecar.usage.window import Window
from tests.simulation import run
from tests.simulation.billing.mutations import BILLING, doubting_no_others
from tests.simulation.billing.run import bill
from tests.simulation.minute_mutations import OF_MINUTES, waiting_for_the_end_of_an_outage
from tests.simulation.patches import Patch, at_once, both, every_script, method, replaced, script

CAUGHT = Path(__file__).parent / "caught.json"


def _absolute_total(stack: ExitStack) -> None:
    """Restore what the ledger says in all, whatever syncs brought meanwhile."""
    older = Projector._older

    async def all_of_it(self: Projector, tx: Any, found: Any, first_direct_hour: int) -> Any:
        return await older(self, tx, found, first_direct_hour + 72)

    stack.enter_context(mock.patch.object(Projector, "_older", all_of_it))
    script("publish", ("local members = redis.call(", "local members = {} or redis.call("))(stack)


def _leases_first(stack: ExitStack) -> None:
    """Free a dead writer's leases, then report what it had counted."""
    finish = Adoption._finish

    async def hasty(self: Adoption, journal: Any) -> None:
        for shard in range(self._store.keys.shards):
            while await self._insist(self._store.retire, shard, journal.writer):
                pass
        await asyncio.sleep(1.5)
        await finish(self, journal)

    stack.enter_context(mock.patch.object(Adoption, "_finish", hasty))


def _old_writer_goes_on(stack: ExitStack) -> None:
    """Continue the id and the cells of a journal that a dead process left."""
    build, window = Core.__init__, ShardExchange.window
    known: dict[str, dict[Any, int]] = {}

    def built(self: Core, settings: Any, store: Any, clock: Any, counters: Any) -> None:
        left = sorted((settings.state / "journals").glob(f"*{SUFFIX}"))
        dead = [path for path in left if path.stem not in known or path.stem not in ALIVE]
        with ExitStack() as tokens:
            if dead:
                writer, windows = inspect_journal(dead[0])
                known[writer] = {one.key: one.value for one in windows}
                dead[0].unlink()
                core = sys.modules[Core.__module__]
                tokens.enter_context(mock.patch.object(core.secrets, "token_hex", return_value=writer))
            build(self, settings, store, clock, counters)
        ALIVE.add(self.writer)

    def opened(self: ShardExchange, account: Any, span: Any) -> Window:
        fresh = account.windows.get(span) is None
        found = window(self, account, span)
        if fresh:
            found.view[found.index] = known.get(self.writer, {}).get(found.key, 0)
        return found

    stack.enter_context(mock.patch.object(Core, "__init__", built))
    stack.enter_context(mock.patch.object(ShardExchange, "window", opened))


ALIVE: set[str] = set()

# Texts of scripts as they are loaded, with constants in place of their names: 8 is the lease, 9 the writer's spending.
_LOWERED = "set_lease(kept, current)\n    if (want > 0"
_SPENT = """
    local lowered = (tonumber(kept[(8)]) or 0) - current
    if lowered > 0 then
      kept[(9)] = kept[(9)] or 0
      count(kept, limit, lowered)
    end"""
_PART = "  if own_revision > revision then"
_ACCEPTED = "local accepted = known_generation == generation.gen and sequence > stored_sequence and not stored[3]"
_GRANTING = "return generation.state == 'open' and real >= generation.open_at"
_STEADY = "if elapsed > (10000) or elapsed < -1000 then"
_REFUSED = """
for index = 1, refused do
  local leases = {}
  for position = 1, #message[5][index][4] do leases[position] = { 0, 0, 0, 0, false } end
  replies[index] = { message[5][index][2], leases }
end"""
_DROPPED = """
if not lost then
  redis.call('DEL', writer_key)
  for _, key in ipairs(redis.call('KEYS', tag .. 'window:*')) do redis.call('HDEL', key, writer) end
end
"""


_ANY_PASS = script("publish", (" or (tonumber(found[4]) or 0) > message[8]", ""))
giving_revisions_again = method(
    Flusher,
    "_ledger_went_back",
    ('if not await tx.rows("leave_revisions_behind", REVISIONS_LEFT_BEHIND):', "if False:"),
    ('"renew_tenants"', '"forget_tenants_projected"'),
)

MUTATIONS: dict[str, Patch] = {
    "spent moved by leases as well as windows": script(
        "sync",
        (_LOWERED, f"{_SPENT}\n    {_LOWERED}"),
    ),
    "restoring an absolute total": _absolute_total,
    "refusing syncs during the restore": script(
        "sync",
        (
            _ACCEPTED,
            _ACCEPTED + "\nif generation.state == 'held' then parts = {} end\nlocal refused = #message[5] - #parts",
        ),
        (
            "local replies, snapshots = {}, 0",
            "local replies, snapshots = {}, 0\n" + _REFUSED,
        ),
    ),
    "granting during the restore": every_script((_GRANTING, "return true")),
    "granting after lease_ttl instead of reclaim_after": script(
        "open", ("local open_at = generation.since + reclaim_after", "local open_at = generation.since + 2000")
    ),
    "reclaiming after lease_ttl": both(
        script("sync", ("local reclaim_after = tonumber(ARGV[2])", "local reclaim_after = 2000")),
        script(
            "collect",
            (
                "local ledger_epoch, most, reclaim_after = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])",
                "local ledger_epoch, most, reclaim_after = tonumber(ARGV[2]), tonumber(ARGV[3]), 2000",
            ),
        ),
        script(
            "retire",
            ("local lost = reclaim_after > 0", "local lost = reclaim_after > 0\nif lost then reclaim_after = 2000 end"),
        ),
    ),
    "no generation in messages": script(
        "sync", (_ACCEPTED, _ACCEPTED.replace("known_generation == generation.gen and ", ""))
    ),
    "no check of the acknowledged sequence, replication id ignored": both(
        every_script(("if not found[1] or found[2] ~= replid then", "if not found[1] then")),
        script("sync", ("and acknowledged > stored_sequence then", "and false then")),
        script("collect", ("if ledger_epoch > intent then", "if false then")),
    ),
    "using late replies": method(
        ShardExchange,
        "applied",
        (
            "timely = message.sequence == self._sequence and now_ms - sent_ms < self.terms.lease_ttl_ms",
            "timely, sent_ms = message.sequence == self._sequence, now_ms",
        ),
    ),
    "using superseded replies": method(
        ShardExchange, "applied", ("timely = message.sequence == self._sequence and", "timely =")
    ),
    "dropping a departed writer's entry": script(
        "retire",
        (
            "local remaining = redis.call('SCARD', held_key)",
            _DROPPED + "local remaining = redis.call('SCARD', held_key)",
        ),
    ),
    "deleting an adopted journal when Redis has it": replaced(Adoption, "_await_ledger", at_once),
    "freeing a cell when Redis has it": method(Window, "in_ledger", ("self.version <= watermark and ", "")),
    "continuing an old writer id": _old_writer_goes_on,
    "freeing an old life's leases before its windows are reported": _leases_first,
    "stale messages counting as signs of life": script(
        "sync", (_ACCEPTED, _ACCEPTED.replace("sequence > stored_sequence and ", "sequence > 0 and "))
    ),
    "new limits starting at zero": script(
        "publish", ("for key, units in pairs(sums) do", "for key, units in pairs({}) do")
    ),
    "accepting syncs of an older revision": script(
        "sync",
        (_PART, "  if false then"),
        ("part[4][position], own_revision == revision)", "part[4][position], true)"),
        ("replies[index] = { own_revision, leases }", "replies[index] = { revision, leases }"),
    ),
    "no guaranteed need": script("sync", ("if need <= room and units < need then units = need end", "")),
    "a waiter joined to a call sent before it": method(
        Synchroniser,
        "_exchange",
        (
            "            finally:\n",
            f"            finally:\n{' ' * 16}waiters += self._waiting[shard]\n{' ' * 16}self._waiting[shard] = []\n",
        ),
    ),
    "a jump of Redis' clock counts as silence": every_script((_STEADY, "if false then")),
    "windows that the ledger lacks expire": script(
        "sync", ("redis.call('PERSIST', key)", ""), ("if new and not marked then", "if new then")
    ),
    "a restored ledger is not noticed in an idle shard": both(
        replaced(Epochs, "compare", lambda _self, _states: None), doubting_no_others
    ),
    "forgotten revisions are not outrun": both(
        method(Projector, "_publish", ("rev > one.rev]", "False]")),
        giving_revisions_again,
    ),
    # A late publish of before the restore has no effect, since passes are numbered: both have to be gone.
    "revisions of before a restore are given again": both(giving_revisions_again, _ANY_PASS),
    "a publish from before old windows counted is accepted": script(
        "publish", ("(tonumber(found[2]) or 0) > message[7] or (tonumber(found[4]) or 0) > message[8]", "false")
    ),
    "a publish of an earlier pass is accepted": _ANY_PASS,
    "what ended before the restored hours is lent": script("sync", ("grants and known then", "grants then")),
    "what another server got counts as projected": method(
        Flusher, "_meet", ("await catch_up(tx, self._store, collected)", "pass")
    ),
    "what only another server heard is not brought over": method(
        flusher, "catch_up", ("collected.first_direct_hour", "2**40")
    ),
    "a worker retires where what it told was lost": both(
        method(Core, "_retire", ("generation=exchange.generation", 'generation=""')),
        method(Synchroniser, "drain", ("if exchange.kept and", "if False and")),
        waiting_for_the_end_of_an_outage,  # else there is no time for the other shard to be lost
    ),
    "the ledger's number of a catalogue is taken for good": method(
        Projector, "_parsed", ("found == self._version", "found[0] == self._version[0]")
    ),
    "a stopping worker takes what is granted after its last report": method(
        Synchroniser, "drain", ("exchange.ended = True", "pass")
    ),
    "a cell is freed by the writer's clock alone": method(
        Kept, "release", ("min(hour, redis_hour) - HOURS_KEPT", "hour")
    ),
}

ALL = MUTATIONS | BILLING | OF_MINUTES


@contextmanager
def mutated(name: str) -> Iterator[None]:
    """The program with one shortcut in it."""
    ALIVE.clear()
    with ExitStack() as stack:
        ALL[name](stack)
        yield


def noticed(name: str, seed: int) -> str | None:
    """The first violation that a seed shows of a mutation."""
    with mutated(name):
        if name in BILLING:
            violations = bill(seed).violations
        else:  # whatever the seed says itself, so that it still shows the shortcut when others are drawn
            violations = run.count(seed, minutes=name in OF_MINUTES, ends=False).oracle.violations
    return violations[0] if violations else None


def _hunt(pool: multiprocessing.pool.Pool, name: str, first: int, most: int, at_once: int) -> int | None:
    """How many seeds it takes to notice a mutation; None when all of them do not."""
    for begun in range(0, most, at_once):
        seeds = range(first + begun, first + min(begun + at_once, most))
        for index, about in enumerate(pool.map(partial(noticed, name), seeds, chunksize=1)):
            if about:
                print(f"{begun + index + 1:5}  {name}: {about[:150]}", file=sys.stderr)
                return begun + index + 1
    print(f" none  {name}", file=sys.stderr)
    return None


def _keep(name: str, seed: int) -> None:
    kept = json.loads(CAUGHT.read_text()) if CAUGHT.exists() else {}
    kept[name] = [seed]
    CAUGHT.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutations")
    parser.add_argument("--seeds", type=int, default=2_000)
    parser.add_argument("--from", type=int, default=0, dest="first")
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    run.quiet()
    found: dict[str, int | None] = {}
    with multiprocessing.Pool(options.jobs) as pool:
        for name in ALL:
            if options.only in name:
                found[name] = _hunt(pool, name, options.first, options.seeds, options.jobs * 8)
                if found[name] is not None:
                    _keep(name, options.first + (found[name] or 1) - 1)
    print(json.dumps(found))
    return 1 if None in found.values() else 0


if __name__ == "__main__":
    sys.exit(main())
