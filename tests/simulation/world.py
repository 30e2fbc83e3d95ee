"""One run: machines with workers, flushers, Redis, Postgres, and clients that send requests.

``World`` only says what can be done to it; faults/ does it, invariants.py looks at the result.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import sidecar.enforcement.changes
import sidecar.enforcement.core
import sidecar.enforcement.exchange
import sidecar.ledger.flusher
import sidecar.ledger.projector
import sidecar.store.client
import sidecar.usage.journal
import sidecar.usage.recovery
from sidecar.catalogue.snapshot import LimitRule
from sidecar.enforcement.decision import Decision
from sidecar.ledger.flusher import Flusher, FlushTerms
from sidecar.store.client import Store
from sidecar.store.keys import Keyspace
from sidecar.telemetry import FlusherCounters
from sidecar.usage.recovery import inspect
from sidecar.usage.window import WindowKey
from tests.simulation import lua
from tests.simulation.catalogues import PLANS, SMALL_TEXTS, TEXTS, catalogue, compiled_routes, decoded, limits
from tests.simulation.clock import MachineClock
from tests.simulation.ends import ANSWERS, Ends
from tests.simulation.network import Connection, Network, below
from tests.simulation.oracle import Oracle
from tests.simulation.postgres import MemoryLedger, Postgres
from tests.simulation.redis import MemoryRedis
from tests.simulation.scheduler import Killed, Process, Step, VirtualLoop, current, virtual
from tests.simulation.tables import CounterKey, Tables
from tests.simulation.witness import Witness
from tests.simulation.worker import SHARDS, TERMS, Worker

if TYPE_CHECKING:
    from sidecar.enforcement.charge import Charge

SEEDS_A_MINUTE = 8  # one of so many has limits of seconds and minutes
SEEDS_AN_END = 8  # one of so many has workers that end between counting and answering, or at a file
BEFORE_MINUTE_MS = 2_500, 10_000
FULL = sidecar.enforcement.exchange.LIMITS_PER_SYNC
LIMITS_PER_SYNC = FULL, FULL, 10, 8  # few: much of what there is to say of them waits for the next message
SKEWS_MS = 0, 0, 0, -300, 700, -2_000, 1_500, -20_000
EPOCH_MS = 1_772_366_400_000  # 2026-03-01 12:00:00 UTC
TENANTS = ("t0", "t1", "t2", "kid")
ANSWER_MS = 3
TAKES_TIME = 0.3  # how many queries take long enough for something else to happen
WOKEN_REQUESTS = 16
RUSH_MS = 40
CROWD_MAX = 20
CROWD_US = 8_000
MESSAGE_MS = 50  # what a message may take before its sender has given it up
BLOCK_BYTES = 4096
FLUSHER_TIMEOUT_MS = 1_000


class Machine:
    """A disk, the wall clock beside it, and the workers that live there."""

    def __init__(self, name: str, folder: Path, clock: MachineClock) -> None:
        self.name = name
        self.folder = folder
        self.journals = folder / "journals"
        self.clock = clock
        self.workers: list[Worker] = []
        self.image: dict[str, bytes] = {}

    def alive(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.process.alive and not worker.stopping]

    def remember(self) -> None:
        """Let the kernel write everything to the disk."""
        self.image = {path.name: path.read_bytes() for path in sorted(self.journals.glob("*.journal"))}

    def forget(self) -> None:
        """The power fails: the disk has what the kernel had written."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.journals.mkdir(parents=True)
        for name, content in self.image.items():
            (self.journals / name).write_bytes(content)


class World:
    """Everything of one run. ``history`` is what a person reads of it."""

    def __init__(self, seed: int, folder: Path, *, minutes: bool | None = None, ends: bool | None = None) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.besides = Random(f"{seed}-minutes")  # of its own, so that other seeds stay what they were
        drawn = self.besides.randrange(SEEDS_A_MINUTE) == 0
        self.minutes = drawn if minutes is None else minutes
        self.texts: tuple[str, ...] = TEXTS
        if self.minutes:
            first = self.besides.randrange(len(SMALL_TEXTS))
            self.texts = SMALL_TEXTS[first:] + SMALL_TEXTS[:first]
        self.endings = Random(f"{seed}-ends")  # of its own as well
        drawn = self.endings.randrange(SEEDS_AN_END) == 0
        self.has_ends = drawn if ends is None else ends
        self.ends = Ends(self.kill, self.count)
        self.routes = catalogue(self.texts[0]).routes
        self.limits_per_sync = Random(f"{seed}-messages").choice(LIMITS_PER_SYNC) if self.minutes else FULL
        self.loop = VirtualLoop()  # type: ignore[abstract]
        self.history: list[str] = []
        self.start_ms = self._beginning()
        self.redis_wrong_ms = self.redis_wrong_most_ms = 0
        self.keys = Keyspace("sc", SHARDS)
        tags = tuple(map(self.keys.tag, range(SHARDS)))
        self.oracle = Oracle(lambda: self.loop.elapsed_ms, tags, self.note, lambda: self.loop.now_ms)
        self.witness = Witness(self, self.oracle)
        self.redis = self._server()
        self.postgres = Postgres(SHARDS, lambda: self.start_ms + self.loop.elapsed_ms)
        self.postgres.watch = self._committed
        self.network = Network(self.loop, Random(seed + 1), self.redis)
        self.network.kill = self.kill
        self.network.woken = self._besiege
        self.network.trapped = self._rush
        self.oracle.hold_ms = TERMS.reclaim_after_ms
        self.oracle.silent_after_ms = TERMS.reclaim_after_ms - MESSAGE_MS
        self.oracle.ledger_has = self.ledger_has
        self.oracle.ledger_says = self.ledger_says
        self.oracle.lost_state = lambda: self.lost_state > 0
        self.oracle.minutes.workers = self.workers
        self.oracle.minutes.latest_ms = lambda: self.start_ms + self.loop.elapsed_ms + self.redis_wrong_most_ms
        self.oracle.minutes.now = self.witness.kept
        self.machines: list[Machine] = []
        self.flushers: list[Process] = []
        self.lost_state = 0
        self.gone: list[Worker] = []
        self.planned: list[Step] = []
        self.highest: dict[CounterKey, int] = {}
        self._folder = folder
        self._named = 0
        self.silence_ms = range(0)  # in which no client asks
        self.asleep: dict[Process, list[str]] = {}  # who sleeps on a lease, of which tenants

    def _beginning(self) -> int:
        """A moment shortly before something ends, or any other."""
        ahead_ms = self.random.choice((0, 1_800_000, 3_600_000 * 12, 86_400_000 * 31 - 43_200_000))
        before_ms = self.random.randrange(40_000)
        if self.minutes:
            before_ms = self.besides.randrange(*BEFORE_MINUTE_MS)
        return EPOCH_MS + ahead_ms - before_ms

    @property
    def wall_s(self) -> int:
        """What time it is, whatever clocks say."""
        return (self.start_ms + self.loop.elapsed_ms) // 1000

    def note(self, text: str) -> None:
        self.history.append(f"{self.loop.elapsed_ms / 1000:10.3f}  {text}")

    def count(self, fault: str, about: str = "") -> None:
        self.network.count(fault)
        self.note(f"-- {fault} {about}")

    def plan(self, ms: int, call: Callable[..., None], *arguments: Any) -> None:
        """Let a fault, or the end of one, come at an instant, unless everything heals before."""
        self.planned.append(Step(self.loop.at(ms, call, *arguments)))

    # Servers.

    def _server(self) -> MemoryRedis:
        replid = "".join(self.random.choices("0123456789abcdef", k=40))
        server = MemoryRedis(lambda: self.start_ms + self.loop.elapsed_ms + self.redis_wrong_ms, replid)
        server.heard = self.witness.heard
        server.after = self.witness.ran
        return server

    def promote(self, data: Any) -> MemoryRedis:
        """Another server takes over with what it has."""
        server = self._server()
        if data is not None:
            server.load_data(data)
        self.redis = self.network.server = server
        self.lost_state += 1
        return server

    def _committed(self, key: CounterKey, before: int, after: int) -> None:
        if after < max(before, self.highest.get(key, 0)):
            self.oracle.violated("C2", f"the ledger went from {before} to {after} for {key}")
        self.highest[key] = after

    def ledger_has(self, key: WindowKey, writer: str) -> int:
        metric, _, scope = key.series.partition("@")
        return self.postgres.tables.amount((key.tenant, metric, scope, key.period, key.hour, writer))

    def ledger_says(self, tenant: str) -> tuple[LimitRule, ...]:
        """The limits of a tenant by the plan and the catalogue that are in force, known to others or not."""
        text, row = self.postgres.tables.plans[-1][1], self.postgres.tables.tenants[tenant]
        return limits(text, tenant, row["plan"], row["parent"], row["shard"])

    def restore_postgres(self, backup: Tables) -> None:
        self.postgres.restore(backup)
        self.highest = backup.counted()

    # Processes.

    def _name(self, kind: str) -> str:
        self._named += 1
        return f"{kind}{self._named}"

    def add_machine(self) -> Machine:
        name = self._name("m")
        machine = Machine(name, self._folder / name, MachineClock(self.loop, self.start_ms))
        if self.minutes:
            machine.clock.set_wrong(self.besides.choice(SKEWS_MS))
        machine.journals.mkdir(parents=True)
        self.machines.append(machine)
        return machine

    def start_worker(self, machine: Machine) -> Worker:
        name = self._name("w")
        CONNECTIONS[name] = self.network
        worker = Worker(name, machine.folder, self.loop, machine.clock, self.oracle, self._reply_again, self._counted)
        CONNECTIONS.pop(name)
        machine.workers.append(worker)
        self.note(f"{name} starts on {machine.name} as writer {worker.core.writer}")
        worker.start()
        return worker

    def _reply_again(self) -> bool:
        return self.network.drawn(self.network.repeated_rate * 5, "reply repeated")

    def _counted(self, charge: Charge) -> None:
        """A worker has counted a request that it is about to answer."""
        try:
            self.ends.reached(ANSWERS)
        except Killed:
            for owner, series, units in charge.series:
                self.oracle.unanswered[owner.tenant, series] += units
            raise

    def start_flusher(self) -> Process:
        process = Process(self._name("f"))
        clock = MachineClock(self.loop, self.start_ms)

        async def answer() -> None:
            if process in self.network.fuses:
                self.network.burn(process)
            if not process.alive:
                await self.loop.create_future()
            if self.random.random() < TAKES_TIME:
                await self.loop.pause_us(100 + below(self.random, 2_900, 12))

        def build() -> Flusher:
            CONNECTIONS[process.name] = self.network
            store = Store(
                f"sim://{process.name}", self.keys, clock, identity=process.name, timeout_ms=FLUSHER_TIMEOUT_MS
            )
            ledger: Any = MemoryLedger(self.postgres, process, answer)
            terms = FlushTerms(1_000, TERMS.reclaim_after_ms, "full")
            return Flusher(ledger, store, clock, FlusherCounters(), terms)

        flusher = process.run(build)
        process.spawn(self.loop, self._flush(process, flusher))
        self.flushers.append(process)
        self.note(f"{process.name} starts to flush")
        return process

    async def _flush(self, process: Process, flusher: Flusher) -> None:
        try:
            await flusher.run()
        except BaseExceptionGroup as errors:
            self.oracle.violated("crash", f"the flusher {process.name} ended: {errors.exceptions!r}")

    def kill(self, process: Process, *, torn: bool = False) -> None:
        """Kill -9."""
        if not process.alive:
            return
        self.note(f"{process.name} is killed{', its journal torn' if torn else ''}")
        process.alive = False
        self.network.fuses.pop(process, None)
        self.postgres.forget(process)
        for worker in self.workers():
            if worker.process is process:
                worker.kill(torn=torn)

    def workers(self) -> Iterator[Worker]:
        return (worker for machine in self.machines for worker in machine.workers)

    def lose_disk(self, machine: Machine) -> None:
        """A machine is gone for good; what its journals held and Redis never heard is lost."""
        for worker in machine.workers:
            self.kill(worker.process)
        for path in sorted(machine.journals.glob("*.journal")):
            self.oracle.lost[path.stem] = {}
            self.oracle.vanished(self.redis, path.stem)
        shutil.rmtree(machine.folder)
        self.machines.remove(machine)
        self.gone += machine.workers

    def fail_power(self, machine: Machine) -> None:
        """A machine stops at once; its disk has what the kernel had written."""
        for worker in machine.workers:
            self.kill(worker.process)
        before = {path.stem for path in machine.journals.glob("*.journal")}
        machine.forget()
        for writer in sorted(before):
            path = machine.journals / f"{writer}.journal"
            self.oracle.lost[writer] = dict(inspect(path)[1]) if path.exists() else {}
            self.oracle.vanished(self.redis, writer)

    # Clients.

    def request(self) -> None:
        """One request of a random client to a random worker."""
        workers = [one for machine in self.machines for one in machine.alive() if not one.process.paused]
        if not workers or self.loop.now_ms in self.silence_ms:
            return
        route = self.random.choices(self.routes, (1, 2, 6))[0]
        self.send(self.random.choice(workers), self.random.choice(TENANTS), route, self.random.choice(("u1", "u2", "")))

    def _besiege(self, process: Process) -> None:
        """Send requests to a worker that just went on, before it can ask whether its leases are still its own."""
        tenants = self.asleep.pop(process, list(TENANTS))
        for worker in self.workers():
            if worker.process is process and process.alive:
                for _ in range(WOKEN_REQUESTS):
                    tenant = self.random.choice(tenants)
                    self.loop.after_us(10, self.send, worker, tenant, self.routes[-1], "u1")

    def _rush(self, process: Process, tenants: list[str], ms: int) -> None:
        """A worker sleeps on an answer with leases in it: others use up what it held as soon as they can."""
        self.note(f"{process.name} sleeps for {ms} ms on leases of {tenants}")
        self.asleep[process] = tenants
        draw = Random(f"{self.seed} {process.name}")
        for after_ms in range(TERMS.reclaim_after_ms, ms, RUSH_MS):
            self.loop.at(self.loop.now_ms + after_ms, self._rushed, process, draw.choice(tenants), draw)

    def _rushed(self, process: Process, tenant: str, draw: Random) -> None:
        others = [one for machine in self.machines for one in machine.alive() if one.process is not process]
        awake = [one for one in others if not one.process.paused]
        if awake and process.alive and process.paused:
            self.send(draw.choice(awake), tenant, draw.choice(self.routes), "u1")

    def crowd(self, draw: Random) -> None:
        """Many ask one worker for one tenant within a moment: some come while a message for the others is under way."""
        workers = [one for machine in self.machines for one in machine.alive() if not one.process.paused]
        if not workers:
            return
        worker, tenant = draw.choice(workers), draw.choice(TENANTS)
        for _ in range(draw.randrange(4, CROWD_MAX)):
            route = draw.choice(self.routes)
            self.loop.after_us(draw.randrange(CROWD_US), self.send, worker, tenant, route, draw.choice(("u1", "u2")))

    def send(self, worker: Worker, tenant: str, route: Any, user: str, heard: list[Decision] | None = None) -> None:
        costs = route.costs

        def answer(worker: Worker, decision: Decision) -> None:
            if heard is not None:
                heard.append(decision)
            if decision.allow:
                delay_ms = self.random.randrange(ANSWER_MS)
                self.loop.at(self.loop.now_ms + delay_ms, self._answered, worker.process, tenant, costs)

        worker.request(tenant, route, user, answer)

    def _answered(self, process: Process, tenant: str, costs: dict[str, int]) -> None:
        book = self.oracle.answered if process.alive else self.oracle.unanswered
        for metric, units in costs.items():
            book[tenant, metric] += units
            if tenant == "kid":
                book["t0", metric] += units

    # The plans.

    def put_plans(self) -> None:
        self.postgres.apply_catalogue(self.texts[0])
        for tenant in TENANTS:
            plan = self.random.choice(PLANS)
            self.postgres.put_tenant(tenant, plan=plan, parent="t0" if tenant == "kid" else "")
            self.note(f"{tenant} is on {plan}")


CONNECTIONS: dict[str, Network] = {}


def connected(url: str, **_options: Any) -> Connection:
    """Stands in for a pool of connections in the store."""
    process = current()
    assert process is not None
    return Connection(CONNECTIONS[url.removeprefix("sim://")], process)


@contextmanager
def simulated(random: Random, loop: VirtualLoop, limits_per_sync: int = FULL) -> Iterator[None]:
    """Put the simulation in the place of servers, random ids and large files; messages may be smaller."""
    tokens = SimpleNamespace(token_hex=lambda size: f"{random.getrandbits(size * 8):0{size * 2}x}")
    parse = lambda text, _name: catalogue(text)  # noqa: E731
    with ExitStack() as stack:
        stack.enter_context(virtual(loop))
        for module, name, value in (
            (sidecar.store.client, "connect", connected),
            (sidecar.store.client, "load", lambda: lua.SCRIPTS),
            (sidecar.enforcement.core, "secrets", tokens),
            (sidecar.enforcement.changes, "parse", parse),
            (sidecar.enforcement.changes, "decode", decoded),
            (sidecar.enforcement.changes, "RouteTable", compiled_routes),
            (sidecar.ledger.projector, "parse", parse),
            (sidecar.ledger.flusher, "PROJECT_INTERVAL_S", 1.0),
            (sidecar.ledger.flusher, "FOLD_INTERVAL_S", 2.5),
            (sidecar.enforcement.exchange, "LIMITS_PER_SYNC", limits_per_sync),
            (sidecar.enforcement.core, "WATCH_INTERVAL_S", 10.0),
            (sidecar.usage.journal, "BLOCK_BYTES", BLOCK_BYTES),
            (sidecar.usage.recovery, "BLOCK_BYTES", BLOCK_BYTES),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        yield
