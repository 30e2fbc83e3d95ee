"""The simulated Redis answers as the real one does, command by command and script by script."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
import redis as client
from redis.exceptions import NoScriptError

from sidecar.embedded import EmbeddedRedis
from sidecar.store.messages import ENCODER
from tests.simulation import lua
from tests.simulation.redis import MemoryRedis

TAG = "{s000}:"
WRITERS = ("1" * 16, "2" * 16)
LIMITS = [("day", "calls", "day", False, 60, 60), ("each", "calls", "month", True, 20, 20)]


class Pair:
    """The same calls to both; every answer is compared."""

    def __init__(self, url: str, prefix: str) -> None:
        self.real = client.Redis.from_url(url, protocol=2)
        self.tag = f"{prefix}:{TAG}"
        replid = str(client.Redis.from_url(url).info("replication")["master_replid"])
        self.simulated = MemoryRedis(self._now, replid)
        self.now = 0
        self.calls = 0

    def _now(self) -> int:
        return self.now

    def script(self, name: str, keys: list[str], *arguments: Any) -> Any:
        """Run a script on both, in the very same millisecond, which is put in place of redis.call('TIME')."""
        self.calls += 1
        seconds, micros = self.real.time()
        self.now = seconds * 1000 + micros // 1000
        fixed = f"local server_time = {{ '{seconds}', '{micros // 1000 * 1000}' }}"
        text = lua.SCRIPTS[name].text.replace("local server_time = redis.call('TIME')", fixed)
        context = ENCODER.encode((self.tag, 0, f"g{self.calls}"))
        words = [self.tag + key for key in keys]
        packed = [context, *(one if isinstance(one, int | str | bytes) else ENCODER.encode(one) for one in arguments)]
        real = self.real.eval(text, len(words), *words, *packed)
        found = self.simulated.execute(("EVAL", lua.SCRIPTS[name].text, len(words), *words, *packed))
        if isinstance(real, bytes) and name in ("sync", "collect"):
            assert msgspec.msgpack.decode(found) == msgspec.msgpack.decode(real), name
        else:
            assert found == real, name
        return real


@pytest.mark.parametrize("seed", range(6))
def test_scripts_do_the_same_in_the_simulated_redis(redis_url: str, redis_prefix: str, seed: int) -> None:
    pair, draw = Pair(redis_url, redis_prefix), random.Random(seed)
    number, generation, sequences, counted = 1, "", dict.fromkeys(WRITERS, 0), dict.fromkeys(WRITERS, 0)
    hour = pair.real.time()[0] // 3600
    for _ in range(60):
        writer = draw.choice(WRITERS)
        kind = draw.choice(("sync", "sync", "sync", "pass", "publish", "open", "retire", "merge", "resend"))
        if kind == "sync":
            sequences[writer] += 1
            counted[writer] += draw.randrange(5)
            start = hour * 3600 - hour * 3600 % 86_400
            lease = ["day", "day", start, (start + 86_400) * 1000, False, draw.randrange(9), draw.randrange(3), 9, 0]
            windows = [["calls", 0, hour, counted[writer]], ["calls@each:u", 0, hour - draw.randrange(60), 1]]
            message = [writer, sequences[writer], generation, 0, [["t", 1, windows, [lease]]]]
            keys = ["epoch", "writers", f"writer:{writer}", f"held:{writer}", "dirty", "called"]
            generation = msgspec.msgpack.decode(pair.script("sync", keys, 60_000, message))[0]
        elif kind == "pass":
            collected = msgspec.msgpack.decode(
                pair.script("collect", ["epoch", "dirty", "writers"], 0, 9, 60_000, 1_000)
            )
            number = collected[11]
            marks = [window[:5] for window in collected[9]]
            pair.script("settle", ["epoch", "dirty"], collected[0], 0, marks)
        elif kind == "publish":
            direct = draw.choice((hour - 2, hour - 2, 0))
            known = draw.choice((0, 10**6)), number - draw.randrange(2)
            document = ["t", 1, LIMITS, generation, direct, ["day", 0, 5, 10**13], *known]
            pair.script("publish", ["epoch", "tenant:t"], [document], "snapshot")
        elif kind == "resend":
            pair.script("resend", ["epoch", "dirty"], [["t", f"calls:0:{hour - ago}"] for ago in range(5)])
        elif kind == "open":
            pair.script("open", ["epoch", "writers"], generation, "1", 60_000, "full", [])
        elif kind == "retire":
            pair.script("retire", ["epoch", "writers", f"writer:{writer}", f"held:{writer}"], writer, 9, 0)
        else:
            pair.script("merge", ["epoch"], generation, [["t", "calls", 0, hour, "3" * 16, draw.randrange(9)]])
    pair.real.close()


def test_an_unknown_script_is_refused_as_redis_does(redis_server: EmbeddedRedis) -> None:
    simulated = MemoryRedis(lambda: 0, "a")
    with pytest.raises(NoScriptError):
        simulated.execute(("EVALSHA", lua.SCRIPTS["sync"].sha, 0))
