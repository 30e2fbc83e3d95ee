"""Steady traffic of a chaos run, and a book of every answer.

Guarantees: each request ends in the book as exactly one of allowed, denied or unknown (the connection ended, or Envoy
            could not ask the sidecar).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from random import Random
from typing import Self

import aiohttp

from tests.faults.chaos_place import ADMIN_TOKEN, Client, Place
from tests.servers.load_client import Answer, LoadClient

CLIENTS = 16
ACTIVE = 5
# So many times a tenant is told that its cap is reached before another one takes its place.
DENIALS = 40
BEHIND_S = 0.5
BIGGER = {60: 200, 200: 600, 600: 600}


class Page:
    """What one tenant was told."""

    def __init__(self) -> None:
        self.allowed = 0
        self.unknown = 0
        self.answers: Counter[str] = Counter()

    def add(self, answer: Answer | None) -> None:
        if answer is None:
            self._unknown("lost")
        elif answer.allowed:
            self.allowed += 1
            self.answers[f"allowed {answer.mark}"] += 1
        elif answer.problem.get("reason"):
            self.answers[f"{answer.status} {answer.reason}"] += 1
        elif answer.status == 503:
            self._unknown("sidecar away")
        else:
            self._unknown(f"{answer.status} without a reason")

    def _unknown(self, what: str) -> None:
        self.unknown += 1
        self.answers[what] += 1


class ChaosTraffic:
    """Entering starts it; leaving stops it after each last answer."""

    def __init__(self, place: Place, clients: list[Client], *, rate_per_s: int, seed: int) -> None:
        self.book = {client.tenant: Page() for client in clients}
        self.control: Counter[str] = Counter()
        self._place = place
        self._random = Random(seed)
        self._pause_s = CLIENTS / rate_per_s
        self._billed = [client for client in clients if client.cap is None]
        self._waiting = [client for client in clients if client.cap is not None]
        self._active = self._waiting[:ACTIVE]
        del self._waiting[:ACTIVE]
        self._exhausted: list[Client] = []
        self._denials: Counter[str] = Counter()
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def answered(self) -> int:
        """Answered allows."""
        return sum(page.allowed for page in self.book.values())

    @property
    def unknown(self) -> int:
        return sum(page.unknown for page in self.book.values())

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._client()) for _ in range(CLIENTS)]
        self._tasks.append(asyncio.create_task(self._operator()))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def _client(self) -> None:
        ports = {name: envoy.port for name, envoy in self._place.envoys.items()}
        connections = {name: LoadClient(port) for name, port in ports.items()}
        due = time.monotonic() + self._random.random() * self._pause_s
        try:
            while not self._stop.is_set():
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                due = max(due + self._pause_s, time.monotonic() - BEHIND_S)
                client = self._choose()
                edge = self._random.choice(client.edges)
                await self._ask(client, edge, connections)
        finally:
            for connection in connections.values():
                await connection.close()

    async def _ask(self, client: Client, edge: str, connections: dict[str, LoadClient]) -> None:
        page = self.book[client.tenant]
        try:
            answer = await connections[edge].ask(headers={"x-api-key": client.key})
        except TimeoutError:
            await connections[edge].close()
            answer = None
        page.add(answer)
        if answer is not None and answer.reason == "limit_reached":
            self._denied(client)

    def _choose(self) -> Client:
        drawn = self._random.random()
        if drawn < 0.4 or not self._active:
            return self._random.choice(self._billed)
        if drawn < 0.45 and self._exhausted:
            return self._random.choice(self._exhausted)
        return self._random.choice(self._active)

    def _denied(self, client: Client) -> None:
        """A tenant at its cap makes way for a fresh one after a while, and is asked about now and then."""
        self._denials[client.tenant] += 1
        if self._denials[client.tenant] >= DENIALS and client in self._active and self._waiting:
            self._active.remove(client)
            self._exhausted.append(client)
            self._active.append(self._waiting.pop(0))

    async def _operator(self) -> None:
        """Reads tenants by the billing API, and raises the cap of one that has reached it now and then."""
        headers = {"authorization": f"Bearer {ADMIN_TOKEN}"}
        timeout = aiohttp.ClientTimeout(total=8)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
            while not self._stop.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), 2)
                try:
                    await self._operate(session)
                except (aiohttp.ClientError, OSError, TimeoutError) as error:
                    self.control[type(error).__name__] += 1

    async def _operate(self, session: aiohttp.ClientSession) -> None:
        client = self._random.choice(self._exhausted or self._billed)
        url = f"{self._place.control_url}/api/v1/tenants/{client.tenant}"
        if client.cap is None or BIGGER[client.cap] == client.cap:
            async with session.get(url) as answer:
                self.control[f"GET {answer.status}"] += 1
            return
        plan = f"capped_{BIGGER[client.cap]}"
        client.cap = BIGGER[client.cap]  # whatever comes of it, more than this must not be allowed
        self._denials[client.tenant] = 0
        self._exhausted.remove(client)
        self._active.append(client)
        async with session.put(url, json={"plan": plan}) as answer:
            self.control[f"PUT {answer.status}"] += 1
