"""A master that sentinels name.

The answer of the highest configuration epoch counts, once most sentinels have answered: one that was away may still
name a master of yesterday. A demoted master refuses scripts, since each of them may write; that counts as a failure
and the sentinels are asked again. They are asked every few seconds besides, for a master cut off from them alone.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from sidecar.store.servers import Connect, Following

if TYPE_CHECKING:
    from collections.abc import Collection

    from redis.asyncio import Redis

    from sidecar.redis_url import RedisUrl

LOOK_S = 5.0


class SentinelServers(Following):
    """The master of one name, whichever server that is at the moment."""

    def __init__(self, url: RedisUrl, connect: Connect) -> None:
        super().__init__(connect)
        self._url = url
        self._master = ""
        self._replicas: set[str] = set()

    async def run(self, key: str, words: tuple[Any, ...]) -> Any:
        client = await self.owner(key)
        return await client.execute_command(*words)  # type: ignore[no-untyped-call]

    async def owner(self, key: str) -> Redis:
        del key
        if not self._master:
            await self._learn()
        elif asyncio.get_running_loop().time() - self._asked_s >= LOOK_S:
            self.doubt()
        if not self._master:
            raise self._nobody(f"no sentinel names the master {self._url.master}")
        return self._client(self._master)

    async def everyone(self) -> dict[str, Redis]:
        master = await self.owner("")
        found = {"the master": master}
        for host, port in self._url.hosts:
            try:
                replicas = await self._asked(self._url.sentinel(host, port), "SENTINEL", "REPLICAS", self._url.master)
            except Exception:  # noqa: BLE001, S112 - another sentinel may answer; without one only the master is known
                continue
            named = {_address(fields): self._server(fields) for fields in map(_fields, replicas)}
            self._replicas = set(named.values())
            return found | {address: self._client(url) for address, url in named.items()}
        return found

    async def _ask(self) -> Collection[str]:
        asking = [asyncio.create_task(self._named_by(host, port)) for host, port in self._url.hosts]
        answers: list[tuple[int, str]] = []
        failure: Exception = self._nobody("nobody to ask")
        try:
            for answer in asyncio.as_completed(asking):
                try:
                    answers.append(await answer)
                except Exception as error:  # noqa: BLE001 - of one sentinel; it is raised when none answers
                    failure = error
                if len(answers) * 2 > len(asking):
                    break
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        if not answers:
            raise failure
        _, self._master = max(answers)
        return {self._master, *self._replicas}

    async def _named_by(self, host: str, port: int) -> tuple[int, str]:
        named = _fields(await self._asked(self._url.sentinel(host, port), "SENTINEL", "MASTER", self._url.master))
        return int(named["config-epoch"]), self._server(named)

    def _server(self, fields: dict[str, str]) -> str:
        return self._url.server(fields["ip"], int(fields["port"]))


def _address(fields: dict[str, str]) -> str:
    return f"{fields['ip']}:{fields['port']}"


def _fields(flat: list[bytes]) -> dict[str, str]:
    words = [word.decode() for word in flat]
    return dict(zip(words[::2], words[1::2], strict=True))
