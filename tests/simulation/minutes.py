"""Limits of seconds and minutes as they really were used: they are in no window, no journal and no ledger.

Beside L1 at each admission it checks what keeps L1 from being broken, whenever Redis grants: for each writer Redis has
set aside, or heard of as spent, all that this one spent and may still spend. Where Redis forgot a limit (its state was
lost, or its clock ran past the minute for which it keeps what is over) what nobody could tell it anew is an exception,
to the unit; so is what a writer had spent unreported when its lease was taken back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from sidecar.enforcement.limit_period import FIRST_LEASE_UNITS

if TYPE_CHECKING:
    from sidecar.catalogue.snapshot import LimitRule
    from sidecar.enforcement.limit_period import LimitPeriod
    from tests.simulation.redis import MemoryRedis
    from tests.simulation.worker import Worker

LimitKey = tuple[str, str, int]  # tenant, limit id, start of its period
SMALL = ("second", "minute")
KEPT_MS = 60_000  # for how long Redis keeps what is over, for clocks that are late
NEVER_MS = 2**62
MARK = b"looked at"


def is_small(rule: LimitRule) -> bool:
    return rule.period in SMALL


class Kept(NamedTuple):
    """What Redis keeps of such a limit."""

    generation: bytes
    marked: bool  # it is what was looked at before, and not begun anew
    spent: int
    held: int
    holders: int
    counted: dict[str, int]  # by writer, cumulative
    leases: dict[str, int]  # by writer

    @property
    def consistent(self) -> bool:
        sums = sum(self.counted.values()), sum(self.leases.values()), len(self.leases)
        return sums == (self.spent, self.held, self.holders)


def kept(found: dict[bytes, bytes]) -> Kept:
    """What a hash says; ``found`` has its fields."""
    counted = {field[2:].decode(): int(units) for field, units in found.items() if field[:2] == b"c:"}
    leases = {field[2:].decode(): int(units) for field, units in found.items() if field[:2] == b"l:"}
    spent, held, holders = (int(found.get(field, b"0")) for field in (b"spent", b"held", b"n"))
    return Kept(found.get(b"g", b""), MARK in found, spent, held, holders, counted, leases)


class Held(NamedTuple):
    """What a writer may spend of a limit, what it holds of it, valid or not, and whether it told all that it spent."""

    left: int
    kept: int
    told: bool


class Message(NamedTuple):
    """A message that a server has taken note of."""

    writer: str
    generation: bytes
    granting: bool
    accepted: bool


class Minutes:
    """The truth of these limits in one run."""

    def __init__(self, violated: Callable[[str, str], None], note: Callable[[str], None]) -> None:
        self.workers: Callable[[], Iterable[Worker]] = tuple
        self.now: Callable[[LimitKey], Kept | None] = lambda _key: None  # what Redis keeps
        self.own: dict[LimitKey, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.excepted: dict[LimitKey, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.forgotten: set[LimitKey] = set()
        self._unleased: dict[LimitKey, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.latest_ms: Callable[[], int] = lambda: 0  # what Redis' clock showed at the most
        # When the period ends in ms, as each writer said: a minute's limit may have been a second's that began with it.
        self._ends: dict[LimitKey, dict[str, int]] = defaultdict(dict)
        self._told: dict[LimitKey, dict[str, bytes]] = defaultdict(dict)  # in which generation each writer did last
        self._seen: dict[LimitKey, set[bytes]] = defaultdict(set)  # in which generations
        self._granted: set[tuple[LimitKey, bytes]] = set()  # in which of them it was seen that they grant
        self._expired: set[tuple[LimitKey, bytes]] = set()
        self._doubted: dict[tuple[LimitKey, bytes], set[str]] = defaultdict(set)  # whom it may have forgotten
        self._violated = violated
        self._note = note

    def spent(self, writer: str, key: LimitKey, period: LimitPeriod, units: int, wall_s: int, *, leased: bool) -> None:
        """A writer counted units under a limit when its clock showed that time."""
        if not period.start_s <= wall_s < period.end_s:
            self._violated("L1", f"{writer} spends {units} of {key} at {wall_s}")
        self.own[key][writer] += units
        if not leased:
            self._unleased[key][writer] += units

    def total(self, key: LimitKey) -> int:
        """What was admitted under a limit, by leases."""
        return sum(self.own[key].values()) - sum(self._unleased[key].values())

    def exceptions(self, key: LimitKey) -> int:
        return sum(self.excepted[key].values())

    def taken_back(self, key: LimitKey, generation: bytes, writer: str) -> None:
        """Redis took back the lease of a writer that was silent for long enough: it could not know all."""
        self._doubted[key, generation].add(writer)

    def look(
        self,
        server: MemoryRedis,
        about: Message,
        leases: list[tuple[str, LimitKey, int]],
        unheard: Callable[[str], bool],
    ) -> None:
        """A writer told a server of limits of one tenant: the name under which each is kept, its key, its end in ms.

        ``unheard`` tells of a writer that has told nothing in this generation.
        """
        held = self._held(leases[0][1][0]) if about.granting else {}
        for name, key, end_ms in leases:
            found = read(server, name, about.generation)
            if found is not None:
                if about.accepted or about.writer not in self._ends[key]:  # else it may be an old one
                    self._told[key][about.writer] = found.generation
                    self._ends[key][about.writer] = end_ms
                if not found.marked:
                    server.command(b"HSET", (name, MARK, "1"))
                    self._begun(key, found.generation)
                if about.granting:
                    self._granting(key, found, held.get(key[1:], {}), unheard)

    def _begun(self, key: LimitKey, generation: bytes) -> None:
        """Redis has it for the first time, or anew."""
        seen = self._seen[key]
        if seen:
            self._note(f"Redis has forgotten {key}{'' if generation in seen else ', with all it had'}")
            self.forgotten.add(key)
        if generation in seen:
            self._expired.add((key, generation))
            if self.latest_ms() < min(self._ends[key].values()) + KEPT_MS:
                self._violated("C3", f"Redis has forgotten {key} too early")
        seen.add(generation)

    def _granting(self, key: LimitKey, found: Kept, held: dict[str, Held], unheard: Callable[[str], bool]) -> None:
        """A server grants of what it keeps.

        Of a generation that is not the only one everybody who can has told anew what others had known.
        """
        place, own = (key, found.generation), self.own[key]
        writers = own.keys() | held.keys() | found.leases.keys()
        expired, another = place in self._expired, place not in self._granted and len(self._seen[key]) > 1
        for writer in writers if expired or another else ():
            if expired or unheard(writer) or writer not in held or not held[writer].told:
                self._doubted[place].add(writer)
        self._expired.discard(place)
        self._granted.add(place)
        for writer in sorted(writers):
            spent = own[writer] - self._unleased[key][writer] if writer in own else 0
            left = held[writer].left if writer in held else 0
            lacking = spent + left - found.counted.get(writer, 0) - found.leases.get(writer, 0)
            if lacking > 0:
                self._lacking(place, writer, lacking, f"spent {spent} and has {left} left, Redis has {found}")
            elif writer not in held or lacking + held[writer].kept - left <= 0:
                self._doubted[place].discard(writer)

    def _lacking(self, place: tuple[LimitKey, bytes], writer: str, units: int, about: str) -> None:
        """Redis has set aside less for a writer, and heard of less as spent, than what this one spent and may spend."""
        key, _ = place
        if writer not in self._doubted[place]:
            self._violated("L1", f"{units} of {key} by {writer} are not covered: it {about}")
            self._doubted[place].add(writer)
        elif units > self.excepted[key][writer]:
            self.excepted[key][writer] = units
            self._note(f"{units} of {key} by {writer} are not known to Redis")

    def _held(self, tenant: str) -> dict[tuple[str, int], dict[str, Held]]:
        """What workers may spend of a tenant's limits, by id and start of the period and by writer."""
        found: dict[tuple[str, int], dict[str, Held]] = defaultdict(dict)
        for worker in self.workers():
            account = worker.core.directory.accounts.get(tenant) if worker.process.alive else None
            if account is None:
                continue
            spendable = worker.clock.monotonic_ms() < account.exchange.valid_until_ms
            for state in account.states():
                if state.period.small:
                    told = state.known and state.own == state.own_reported
                    kept = max(0, state.left)
                    held = Held(kept if spendable else 0, kept, told)
                    found[state.id, state.period.start_s][worker.core.writer] = held
        return found

    # When all has come to rest.

    def used_up(self, key: LimitKey, stop: int, end_ms: int) -> bool:
        """Whether a cap was used to its last unit, but for what is set aside for nobody until its period ends."""
        found = self.now(key)
        if found is None:
            aside = 0
        else:
            aside = sum(units for _, units in self._leases(key, found, spoken_of=False))
            aside += sum(self._of_a_second(key, found, end_ms))
        return sum(self.own[key].values()) + aside >= stop

    def _of_a_second(self, key: LimitKey, found: Kept, end_ms: int) -> Iterator[int]:
        """What little was left of a second of this name that began with this minute and is over by its writer's clock.

        Nothing is said of it: a plan brought the minute's limit, which is kept under the same key, after it had ended.
        """
        wall_ms = {one.core.writer: one.clock.wall_ms() for one in self.workers() if one.process.alive}
        for writer, units in self._leases(key, found, spoken_of=True):
            said_ms = self._ends[key].get(writer, end_ms)
            if said_ms < end_ms and said_ms <= wall_ms[writer] and units <= FIRST_LEASE_UNITS:
                yield units

    def held(self, wall_s: int) -> Iterator[str]:
        """Leases in periods that are not over, for whoever still has to give them back."""
        for key in [key for key, ends in self._ends.items() if max(ends.values()) > wall_s * 1000]:
            found = self.now(key)
            for writer, units in self._leases(key, found, spoken_of=True) if found is not None else ():
                if self._ends[key].get(writer, 0) > wall_s * 1000:
                    yield f"{writer} still holds {units} of {key}"

    def _leases(self, key: LimitKey, found: Kept, *, spoken_of: bool) -> Iterator[tuple[str, int]]:
        """Leases by writer: of those that speak of them, or of the others.

        The dead do not, nor do those by whose clocks the period was over, even if they stepped back.
        """
        latest_ms = {one.core.writer: one.clock.latest_ms for one in self.workers() if one.process.alive}
        for writer, units in found.leases.items():
            speaks = latest_ms.get(writer, NEVER_MS) < self._ends[key].get(writer, 0)
            if speaks is spoken_of:
                yield writer, units

    def check_kept(self, ended: set[str], *, lost_state: bool) -> None:
        """C3: what Redis still keeps is what was spent; ``ended``: writers that stopped cleanly when all was well.

        Of a period that was over for a writer when Redis lost its state it told nothing more.
        """
        for key, own in self.own.items():
            found = self.now(key)
            if found is None:
                continue
            if not found.consistent:
                self._violated("C3", f"Redis has sums of {key} that are none: {found}")
            for writer, units in own.items():
                counted = found.counted.get(writer, 0)
                told = not lost_state or self._told[key].get(writer) == found.generation
                least = units if told and writer in ended and key not in self.forgotten else 0
                if not least <= counted <= units:
                    self._violated("C3", f"Redis has {counted} spent of {key} by {writer}, {units} were, {least} told")

    def _alive(self) -> set[str]:
        return {one.core.writer for one in self.workers() if one.process.alive}


def read(server: MemoryRedis, name: str, generation: bytes) -> Kept | None:
    """What a server keeps of a limit; None when that is nothing, or of another generation."""
    words = server.command(b"HGETALL", (name,))
    found = kept(dict(zip(words[::2], words[1::2], strict=True))) if words else None
    return found if found is not None and found.generation == generation else None
