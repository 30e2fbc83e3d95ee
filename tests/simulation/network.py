"""The way between a process and Redis: messages are late, lost, repeated, and overtake each other.

A message under way outlives its sender. Which server a process reaches is the network's to say, so that an old primary
can go on serving some.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any

import msgspec
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError

from sidecar.store.messages import SYNC_REPLY
from tests.simulation import lua
from tests.simulation.redis import MemoryRedis
from tests.simulation.scheduler import Process, VirtualLoop

# What may be repeated on the way: a TCP connection does not, but a proxy or a client that tries again does.
REPEATED = ("EVALSHA", "EVAL")
REPEATED_WITHIN_MS = (5, 200, 3_000, 20_000)
AGAIN_MS = 12_000
LATE_US = 10_000


class Network:
    """Fates of messages, drawn from the seed; rates are per thousand messages."""

    def __init__(self, loop: VirtualLoop, random: Random, server: MemoryRedis) -> None:
        self.loop = loop
        self.server = server
        self.old: MemoryRedis | None = None
        self.old_side: set[Process] = set()
        self.cut: set[Process] = set()
        self.deaf: set[Process] = set()  # the stream of changes lives in another slot, maybe on another server
        self.lost_rate = 0
        self.reply_lost_rate = 0
        self.late_rate = 0
        self.repeated_rate = 0
        self.published_again = False  # each snapshot that is published comes once more, much later
        self.faults: dict[str, int] = {}
        self.stalls: dict[Process, int] = {}
        self.traps: dict[Process, int] = {}  # the same, but at an answer that brings a lease
        self.fuses: dict[Process, int] = {}
        self.arriving_us: dict[Process, int] = {}  # when the last late or repeated message of each arrives
        self._sent = 0
        self._under_way: dict[Process, list[int]] = {}  # numbers of messages, the oldest first
        self.woken: Callable[[Process], None] = lambda _process: None
        self.trapped: Callable[[Process, list[str], int], None] = lambda _process, _tenants, _ms: None
        self.kill: Callable[[Process], None] = lambda _process: None
        self._random = random
        self._bits = random.getrandbits

    def heal(self) -> None:
        self.lost_rate = self.reply_lost_rate = self.late_rate = self.repeated_rate = 0
        self.published_again = False
        self.cut.clear()
        self.deaf.clear()
        self.old_side.clear()
        self.old = None

    def reaches(self, process: Process) -> MemoryRedis:
        return self.old if self.old is not None and process in self.old_side else self.server

    def count(self, fault: str) -> None:
        self.faults[fault] = self.faults.get(fault, 0) + 1

    def burn(self, process: Process) -> bool:
        """Count one effect of a process; kill it when its fuse has burnt down, just before or just after this one."""
        left = self.fuses.get(process)
        if left is None:
            return False
        self.fuses[process] = left - 1
        if left <= 0:
            del self.fuses[process]
            self.kill(process)
            return self._random.random() < 0.5
        return False

    def drawn(self, rate: int, fault: str) -> bool:
        if not rate:
            return False
        drawn = self._bits(10)
        while drawn >= 1000:
            drawn = self._bits(10)
        if drawn >= rate:
            return False
        self.count(fault)
        return True

    def delay_us(self) -> int:
        if self.late_rate and self.drawn(self.late_rate, "message late"):
            return LATE_US + below(self._random, 5_990_000, 23)
        us = self._bits(12)
        while us >= 2_900:
            us = self._bits(12)
        return 100 + us

    def send(self, process: Process, words: tuple[Any, ...], done: asyncio.Future[Any]) -> None:
        """Let a command travel; its answer, if there is one, arrives in ``done``."""
        loop = self.loop
        if process in self.fuses and self.burn(process):
            return
        unheard = process in self.deaf and words[1] in (lua.SCRIPTS["changes"].sha, lua.SCRIPTS["changes"].text)
        if unheard or process in self.cut or (self.lost_rate and self.drawn(self.lost_rate, "request lost")):
            return
        delay_us = self.delay_us()
        self._sent = number = self._sent + 1
        self._under_way.setdefault(process, []).append(number)
        loop.after_us(delay_us, self._arrive, process, words, done, number)
        if delay_us >= LATE_US:
            self._expect(process, delay_us)
        if self.repeated_rate and words[0] in REPEATED and self.drawn(self.repeated_rate, "message repeated"):
            late_ms = self._random.choice(REPEATED_WITHIN_MS)
            delay_us = self._random.randrange(late_ms * 1000)
            loop.after_us(delay_us, self._arrive, process, words, None)
            self._expect(process, delay_us)
        if self.published_again and words[1] in (lua.SCRIPTS["publish"].sha, lua.SCRIPTS["publish"].text):
            self.count("snapshot published again, late")
            loop.after_us(self._random.randrange(AGAIN_MS * 1000), self._arrive, process, words, None)

    def _expect(self, process: Process, us: int) -> None:
        self.arriving_us[process] = max(self.arriving_us.get(process, 0), self.loop.now_us + us)

    def late_messages_of_the_dead(self) -> bool:
        """Whether something is under way that a process sent before its end; Redis may grant it a lease then."""
        now_us = self.loop.now_us
        return any(us >= now_us and not process.alive for process, us in self.arriving_us.items())

    def _arrive(
        self, process: Process, words: tuple[Any, ...], done: asyncio.Future[Any] | None, number: int = 0
    ) -> None:
        """``number`` is that of a message, in the order of sending; a copy has none."""
        if number:
            under_way = self._under_way[process]
            if under_way[0] != number:
                self.count("message overtaken")
            under_way.remove(number)
        server = self.server if self.old is None else self.reaches(process)
        if not server.up:
            answer: Any = RedisConnectionError("connection refused")
        else:
            try:
                answer = server.execute(words)
            except NoScriptError as error:
                answer = error
        if done is None or process in self.cut:
            return
        if self.reply_lost_rate and self.drawn(self.reply_lost_rate, "reply lost"):
            return
        # Handed over as a step of the process: a paused one finds it when it goes on.
        self.loop.after_us(self.delay_us(), self._settle, process, words, done, answer, of=process)

    def _settle(self, process: Process, words: tuple[Any, ...], done: asyncio.Future[Any], answer: Any) -> None:
        if done.done():
            return
        if isinstance(answer, Exception):
            done.set_exception(answer)
            return
        done.set_result(answer)
        ms = self.stalls.pop(process, None)
        if ms is None and process in self.traps:
            leased = leased_to(words, answer)
            if leased:
                ms = self.traps.pop(process)
                self.trapped(process, leased, ms)
        if ms is not None:
            # Between the arrival of the answer and its use.
            process.paused = True
            self.loop.after_us(ms * 1000, self._wake, process)

    def _wake(self, process: Process) -> None:
        if process.paused:  # or everything has healed meanwhile
            self.loop.resume(process)
            self.woken(process)


def below(random: Random, limit: int, bits: int) -> int:
    """What ``random.randrange(limit)`` draws, without its checks; ``bits`` is the length of the limit."""
    drawn = random.getrandbits(bits)
    while drawn >= limit:
        drawn = random.getrandbits(bits)
    return drawn


def leased_to(words: tuple[Any, ...], answer: Any) -> list[str]:
    """The tenants of which an answer brings a lease."""
    sync = lua.SCRIPTS["sync"]
    if words[1] not in (sync.sha, sync.text):
        return []
    parts, reply = msgspec.msgpack.decode(words[-1])[4], SYNC_REPLY.decode(answer)
    if not reply.accepted:
        return []
    pairs = zip(parts, reply.parts, strict=True)
    return [part[0] for part, answered in pairs if any(lease.units for lease in answered.leases)]


class Connection:
    """What a process holds of Redis: stands in for redis.asyncio.Redis."""

    def __init__(self, network: Network, process: Process) -> None:
        self._network = network
        self._process = process

    def execute_command(self, *words: Any) -> asyncio.Future[Any]:
        done: asyncio.Future[Any] = self._network.loop.create_future()
        self._network.send(self._process, words, done)
        return done

    async def scan_iter(self, match: str, count: int) -> AsyncIterator[bytes]:
        del count
        for key in self._network.reaches(self._process).keys(match.rstrip("*").encode()):
            yield key

    async def aclose(self) -> None:
        return
