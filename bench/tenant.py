"""What a tenant in a worker's memory consists of, in bytes by part.

Many tenants are decided once in this process, with the plan of bench/cost.py and a stand-in for Redis that grants all
that is asked for. Then everything is counted that one tenant refers to and no other does: the size of each object, as
the allocator rounds it, with what the garbage collector puts in front of it. Beside it stands what holds all tenants,
for each, and ``traced``: what tracemalloc says that each of the second half took, when memos were full. Twice:

* ``leases at rest``: just decided; what is left of its leases stays with the worker for some minutes;
* ``leases gone back``: five minutes later.

    python -m bench.tenant [--tenants 10000] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import tempfile
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from bench import report
from bench.place import catalogue
from sidecar.catalogue.load import parse
from sidecar.catalogue.policy import Policy
from sidecar.catalogue.resolve import resolve
from sidecar.catalogue.routes import RouteTable
from sidecar.clock import MS_NS, Clock
from sidecar.enforcement.account import Account
from sidecar.enforcement.decision import Identity
from sidecar.enforcement.directory import Directory
from sidecar.enforcement.enforcer import Enforcer
from sidecar.enforcement.exchange import ShardExchange
from sidecar.enforcement.repeats import Repeats
from sidecar.enforcement.synchroniser import Synchroniser
from sidecar.enforcement.terms import Terms
from sidecar.store import snapshots
from sidecar.store.keys import Keyspace
from sidecar.store.messages import SYNC_REPLY, LeaseReply, Lookup, SyncMessage, SyncReply, TenantReply
from sidecar.telemetry import CoreCounters
from sidecar.usage.journal import Journal, record_bytes

NOON_S = 1_772_366_400  # 2026-03-01 12:00:00 UTC
GRAIN = 16  # of Python's allocator
SHARDS = 16
TOGETHER = 500  # tenants that are decided between two syncs
REST_MS = 300_000
STEP_MS = 4_000
KEY = b"t-12345\0api_calls\x001772366400\x00492324"  # of a record in the journal
SPENT = 5_000  # units that others used before
NO_DOCUMENT = msgspec.Raw(msgspec.msgpack.encode(""))


class Place(Clock):
    """A worker's enforcement in virtual time, with a stand-in for Redis."""

    def __init__(self, folder: Path) -> None:
        self.now_ms = 1_000_000
        self.keys = Keyspace("sc", SHARDS)
        self.catalogue = parse(catalogue(1_000_000_000), "catalogue.yaml")
        self.journal = Journal(folder / "writer.journal", "0123456789abcdef")
        self.exchanges = [ShardExchange(shard, "w", self.journal, Terms()) for shard in range(SHARDS)]
        counters = CoreCounters()
        self.directory = Directory(self.exchanges, self, self, counters, tenants_max=1 << 30, keys_max=1)  # type: ignore[arg-type]
        self.directory.policy = Policy(self.catalogue, RouteTable(self.catalogue.routes), 1)
        self._synchroniser = Synchroniser(
            self.exchanges,
            self,  # type: ignore[arg-type]
            self,
            counters,
            interval_ms=500,
            renew=self.directory.renew,
        )
        self.enforcer = Enforcer(self.directory, self._synchroniser, self, self, counters, Repeats(10_000))  # type: ignore[arg-type]
        self._route = self.directory.policy.routes.match("GET", "localhost", "/v1/agents/42/run")
        self._version = 5_000

    # The clock.

    def monotonic_ms(self) -> int:
        return self.now_ms + 0

    def monotonic_ns(self) -> int:
        return self.monotonic_ms() * MS_NS

    def wall_ms(self) -> int:
        return NOON_S * 1000 + self.now_ms

    # The store.

    def reachable(self, shard: int) -> bool:
        return True

    def callable(self, shard: int) -> bool:
        return True

    async def lookup(self, tenant: str, _default: object) -> Lookup:
        found = resolve(
            self.catalogue,
            tenant=tenant,
            rev=1_000_000 + len(self.directory.accounts),
            plan="standard",
            status="active",
            status_until_s=0,
            parent="",
            anchor_s=NOON_S - 1_000_000,
            shadow=False,
            overrides={},
        )
        return Lookup(restored=True, revision=found.rev, document=snapshots.encode(found))

    async def sync(self, _shard: int, message: SyncMessage, _reclaim_after_ms: int) -> SyncReply:
        self.now_ms += 5
        self._version += 1
        parts = [
            TenantReply(
                part.revision,
                [LeaseReply(one.left + one.want, SPENT, one.left + one.want, 0, False) for one in part.leases],
                NO_DOCUMENT,
            )
            for part in message.parts
        ]
        accepted = message.generation == "g1"
        hour = self.wall_s() // 3600
        reply = SyncReply("g1", True, self._version - 1, self._version, accepted, parts, hour)
        return SYNC_REPLY.decode(msgspec.msgpack.encode(reply))

    # What happens.

    async def decide(self, names: list[str]) -> None:
        """One allowed request of each tenant."""
        for first in range(0, len(names), TOGETHER):
            some = names[first : first + TOGETHER]
            answers = await asyncio.gather(
                *(self.enforcer.decide_waiting(Identity(name), self._route, "") for name in some)
            )
            assert all(answer.allow for answer in answers), [answer for answer in answers if not answer.allow][:1]
            await self.report(1)

    async def report(self, times: int) -> None:
        """Syncs of all shards, half a second apart."""
        for _ in range(times):
            self.now_ms += 500
            await asyncio.gather(*(self._synchroniser.join(exchange) for exchange in self.exchanges))


def size(one: object) -> int:
    """Bytes of an object itself."""
    return -(-sys.getsizeof(one) // GRAIN) * GRAIN


def referred(one: object) -> list[tuple[str, object]]:
    """What an object refers to, by attribute where it has any."""
    if isinstance(one, (ShardExchange, memoryview, type)):
        return []
    if isinstance(one, msgspec.Struct):
        return [(name, getattr(one, name)) for name in one.__struct_fields__]
    if isinstance(one, (str, bytes, int)):
        return []
    if isinstance(one, dict):
        return [("", each) for pair in one.items() for each in pair]
    if isinstance(one, (list, tuple, set, frozenset)):
        return [("", each) for each in one]
    slots = [name for base in type(one).__mro__ for name in getattr(base, "__slots__", ())]
    return [(name, getattr(one, name)) for name in slots if hasattr(one, name)]


def reached(account: Account) -> dict[int, tuple[str, object]]:
    """Everything that a tenant refers to, by its id: the attribute that it was first reached by, and what it is."""
    found: dict[int, tuple[str, object]] = {id(account): ("the account itself", account)}
    queue: list[tuple[str, object]] = [("", account)]
    while queue:
        part, one = queue.pop()
        for name, each in referred(one):
            if id(each) not in found:
                found[id(each)] = (part or name, each)
                queue.append((part or name, each))
    return found


def parts(account: Account, others: list[Account]) -> Counter[str]:
    """Bytes by part of what is one tenant's own."""
    shared = {number for other in others for number in reached(other)}
    found: Counter[str] = Counter()
    for number, (part, one) in reached(account).items():
        if number not in shared:
            found[f"{part}: {type(one).__name__}"] += size(one)
    return found


def common(place: Place) -> dict[str, int]:
    """Bytes for each tenant of what holds all of them."""
    sizes = {
        "map of tenants": sys.getsizeof(place.directory.accounts),
        "queues of windows": sum(sys.getsizeof(exchange.kept._windows) for exchange in place.exchanges),
        "tenants with leases at rest": sum(
            sys.getsizeof(due) for exchange in place.exchanges for _, due in exchange.resting._due.values()
        ),
        "journal, a file in memory": place.journal.cells * record_bytes(KEY),
    }
    return {part: took // len(place.directory.accounts) for part, took in sizes.items()}


async def measure(tenants: int) -> dict[str, Any]:
    """Bytes by part, with leases and without."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        await place.report(1)
        names = [f"t-{number}" for number in range(tenants)]
        half = tenants // 2
        tracemalloc.start()
        traced = []
        for some in (names[:half], names[half:]):
            await place.decide(some)
            gc.collect()
            traced.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        found["leases at rest"] = look(place, names) | {"traced": (traced[1] - traced[0]) // (tenants - half)}
        for _ in range(REST_MS // STEP_MS):
            place.now_ms += STEP_MS
            await place.report(1)
        found["leases gone back"] = look(place, names)
    return found


def look(place: Place, names: list[str]) -> dict[str, Any]:
    """Parts of one tenant, and its share of what holds all."""
    accounts = place.directory.accounts
    own = parts(accounts[names[-1]], [accounts[name] for name in names[-TOGETHER:-1]])
    shares = common(place)
    return {"own": dict(own.most_common()), "common": shares, "sum": sum(own.values()) + sum(shares.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = asyncio.run(measure(given.tenants))
    if given.json:
        print(json.dumps(found))
        return
    print(report.headline())
    for state, told in found.items():
        traced = f", {told['traced']} traced" if "traced" in told else ""
        print(f"\n{state}: {told['sum']} bytes{traced}")
        for part, took in (told["own"] | told["common"]).items():
            print(f"  {took:6}  {part}")


if __name__ == "__main__":
    main()
