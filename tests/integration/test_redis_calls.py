"""What one call to Redis costs at most, and how often it is sent, whatever the server does."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from sidecar.clock import Clock
from sidecar.errors import StoreRefused, StoreUnavailable
from sidecar.store.client import Store
from sidecar.store.keys import Keyspace
from sidecar.store.messages import SyncMessage
from tests.servers.full_backlog import FullBacklog
from tests.servers.scripted_redis import CLOSE, SILENCE, ScriptedRedis, bulk, slots
from tests.servers.tcp_proxy import TcpProxy

KEYS = Keyspace(shards=1)
TIMEOUT_MS = 1_000
# A stage that began its own time would take it twice; a busy machine does not.
TWICE_S = 2 * TIMEOUT_MS / 1000


@asynccontextmanager
async def store_at(url: str, timeout_ms: int = TIMEOUT_MS) -> AsyncIterator[Store]:
    store = Store(url, KEYS, Clock(), identity="t", timeout_ms=timeout_ms)
    try:
        yield store
    finally:
        await store.close()


async def ends_in_time(url: str) -> str:
    """Make a call that finds nobody; returns what it said."""
    async with store_at(url) as store:
        began = asyncio.get_running_loop().time()
        with pytest.raises(StoreUnavailable) as failed:
            await store.retire(0, "w")
        assert asyncio.get_running_loop().time() - began < TWICE_S
    return str(failed.value)


def script(**by_verb: bytes) -> Callable[[list[bytes]], bytes]:
    return lambda words: by_verb.get(words[0].decode(), b"+OK\r\n")


async def test_a_call_takes_no_longer_than_its_timeout_wherever_the_server_falls_silent() -> None:
    places = {
        "the script": script(EVALSHA=SILENCE),
        "the whole script": script(EVALSHA=b"-NOSCRIPT No matching script\r\n", EVAL=SILENCE),
        "the login": script(AUTH=SILENCE),
        "the database": script(SELECT=SILENCE),
    }
    async with asyncio.TaskGroup() as asked:
        for answers in places.values():
            asked.create_task(silent_at(answers))
        asked.create_task(silent_cluster())
        asked.create_task(silent_after_moved())
        asked.create_task(silent_sentinels())


async def silent_at(answers: Callable[[list[bytes]], bytes]) -> None:
    async with ScriptedRedis(answers) as server:
        await ends_in_time(f"redis://user:secret@127.0.0.1:{server.port}/1")
        assert max(server.verbs.values()) == 1, server.verbs


async def silent_cluster() -> None:
    async with ScriptedRedis(script(CLUSTER=SILENCE)) as node:
        await ends_in_time(f"redis+cluster://127.0.0.1:{node.port}")


async def silent_after_moved() -> None:
    """The node that has the slot is there and does not answer."""
    async with ScriptedRedis(script(EVALSHA=SILENCE)) as new, ScriptedRedis(script()) as old:
        moved = b"-MOVED 1 127.0.0.1:%d\r\n" % new.port
        old.answer = script(CLUSTER=slots(old.port), EVALSHA=moved)
        await ends_in_time(f"redis+cluster://127.0.0.1:{old.port}")
        assert (old.verbs["EVALSHA"], new.verbs["EVALSHA"]) == (1, 1)


async def silent_sentinels() -> None:
    async with ScriptedRedis(script(SENTINEL=SILENCE)) as one, ScriptedRedis(script(SENTINEL=SILENCE)) as two:
        await ends_in_time(f"redis+sentinel://127.0.0.1:{one.port},127.0.0.1:{two.port}/main")


async def test_a_call_takes_no_longer_than_its_timeout_where_packets_are_dropped_before_there_is_a_connection() -> None:
    with FullBacklog() as one, FullBacklog() as two:
        for url in (
            f"redis://127.0.0.1:{one.port}",
            f"redis+sentinel://127.0.0.1:{one.port},127.0.0.1:{two.port}/main",
            f"redis+cluster://127.0.0.1:{one.port},127.0.0.1:{two.port}",
        ):
            await ends_in_time(url)
            assert not one.connects(), "the connection was made after all"


async def test_a_server_that_cannot_be_connected_to_any_more_costs_a_call_its_timeout_and_no_more() -> None:
    """The node that has the slot drops packets; the one that says so answers."""
    with FullBacklog() as new:
        async with ScriptedRedis(script()) as old:
            moved = b"-MOVED 1 127.0.0.1:%d\r\n" % new.port
            old.answer = script(CLUSTER=slots(old.port), EVALSHA=moved)
            await ends_in_time(f"redis+cluster://127.0.0.1:{old.port}")
            assert old.verbs["EVALSHA"] == 1


async def test_a_connection_that_is_held_up_costs_a_call_its_timeout_and_no_more() -> None:
    async with ScriptedRedis(script(EVALSHA=b":0\r\n")) as server:
        proxy = TcpProxy(server.port)
        await proxy.start()
        async with store_at(f"redis://127.0.0.1:{proxy.port}") as store:
            assert await store.retire(0, "w") == 0
            proxy.hold_up()
            began = asyncio.get_running_loop().time()
            with pytest.raises(StoreUnavailable):
                await store.retire(0, "w")
            assert asyncio.get_running_loop().time() - began < TWICE_S
            proxy.resume()
            assert await store.retire(0, "w") == 0
        assert server.verbs["EVALSHA"] <= 3, "something was sent that nobody asked for"
        await proxy.stop()


@pytest.mark.parametrize(
    "refusal",
    [
        "LOADING Redis is loading the dataset in memory",
        "READONLY You can't write against a read only replica.",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "NOREPLICAS Not enough good replicas to write.",
        "BUSY Redis is busy running a script.",
        "CLUSTERDOWN Hash slot not served",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "ASK 1 127.0.0.1:1",
        "MOVED 1 127.0.0.1:1",
    ],
)
async def test_a_server_that_is_not_ready_is_asked_once_and_counts_as_away(refusal: str) -> None:
    async with ScriptedRedis(script(EVALSHA=f"-{refusal}\r\n".encode())) as server:
        async with store_at(f"redis://127.0.0.1:{server.port}") as store:
            with pytest.raises(StoreUnavailable):
                await store.retire(0, "w")
        assert server.verbs["EVALSHA"] == 1


@pytest.mark.parametrize("refusal", ["ERR user_script: bad argument", "NOPERM no permissions", "OOM not allowed"])
async def test_what_redis_refuses_is_asked_once_and_told(refusal: str) -> None:
    async with ScriptedRedis(script(EVALSHA=f"-{refusal}\r\n".encode())) as server:
        async with store_at(f"redis://127.0.0.1:{server.port}") as store:
            with pytest.raises(StoreRefused, match="Redis refused retire"):
                await store.retire(0, "w")
        assert server.verbs["EVALSHA"] == 1


@pytest.mark.parametrize("answer", [b"$1\r\n\xc1\r\n", b"$4\r\n\x93\x01\x02\x03\r\n", b"$-1\r\n", b":1\r\n"])
async def test_an_answer_that_makes_no_sense_is_told_and_asked_for_again(answer: bytes) -> None:
    async with ScriptedRedis(script(EVALSHA=answer)) as server, store_at(f"redis://127.0.0.1:{server.port}") as store:
        for _ in range(2):
            with pytest.raises(StoreRefused, match="answered sync with what this version does not understand"):
                await store.sync(0, SyncMessage("w", 1, "g", 0, []), 60_000)
            with pytest.raises(StoreRefused, match="answered collect with what"):
                await store.collect(0, 0, 1, 60_000)


async def test_a_connection_that_ends_before_the_answer_does_not_repeat_the_call() -> None:
    async with ScriptedRedis(script(EVALSHA=CLOSE)) as server:
        async with store_at(f"redis://127.0.0.1:{server.port}") as store:
            with pytest.raises(StoreUnavailable):
                await store.retire(0, "w")
            assert server.verbs["EVALSHA"] == 1
            server.answer = script(EVALSHA=b":7\r\n")
            assert await store.retire(0, "w") == 7, "the next call connects anew"
        assert server.verbs["EVALSHA"] == 2


async def test_a_script_that_redis_does_not_know_is_sent_whole_once() -> None:
    unknown = b"-NOSCRIPT No matching script\r\n"
    async with ScriptedRedis(script(EVALSHA=unknown, EVAL=b":7\r\n")) as server:
        async with store_at(f"redis://127.0.0.1:{server.port}") as store:
            assert await store.retire(0, "w") == 7
            server.answer = script(EVALSHA=unknown, EVAL=unknown)
            with pytest.raises(StoreRefused):
                await store.retire(0, "w")
        assert server.verbs == Counter(EVALSHA=2, EVAL=2)


async def test_a_slot_that_moved_is_followed_once_and_not_in_a_circle() -> None:
    async with ScriptedRedis(script()) as one, ScriptedRedis(script()) as two:
        for node, other in ((one, two), (two, one)):
            moved = b"-MOVED 1 127.0.0.1:%d\r\n" % other.port
            node.answer = script(CLUSTER=slots(one.port), EVALSHA=moved)
        async with store_at(f"redis+cluster://127.0.0.1:{one.port}") as store:
            with pytest.raises(StoreUnavailable, match="MovedError"):
                await store.retire(0, "w")
            assert (one.verbs["EVALSHA"], two.verbs["EVALSHA"]) == (1, 1)


async def test_an_answer_that_comes_too_late_is_not_taken_for_that_of_the_next_call() -> None:
    async with ScriptedRedis(script(EVALSHA=b":1\r\n")) as server:
        proxy = TcpProxy(server.port)
        await proxy.start()
        async with store_at(f"redis://127.0.0.1:{proxy.port}", 100) as store:
            proxy.hold_up()
            with pytest.raises(StoreUnavailable):
                await store.retire(0, "w")
            server.answer = script(EVALSHA=b":2\r\n")
            proxy.resume()
            assert {await store.retire(0, "w") for _ in range(3)} == {2}
        await proxy.stop()


async def test_calls_while_the_breaker_is_open_reach_nobody() -> None:
    async with ScriptedRedis(script(EVALSHA=CLOSE)) as server:
        async with store_at(f"redis://127.0.0.1:{server.port}") as store:
            for _ in range(50):
                with pytest.raises(StoreUnavailable):
                    await store.retire(0, "w")
        assert 3 <= server.verbs["EVALSHA"] < 10


@pytest.mark.parametrize("version", ["6.0.16", "5.0.14", "2.8"])
async def test_a_redis_that_is_too_old_is_refused_by_its_version(version: str) -> None:
    answers = script(INFO=bulk(f"# Server\r\nredis_version:{version}\r\n"))
    async with ScriptedRedis(answers) as server, store_at(f"redis://127.0.0.1:{server.port}") as store:
        with pytest.raises(StoreRefused, match=f"Redis, version {version}, is too old; 6.2 or newer is needed"):
            await store.check()


@pytest.mark.parametrize("version", ["6.2.0", "7.0.15", "8.0.1", "10.0"])
async def test_a_new_redis_whose_configuration_is_hidden_is_taken(version: str) -> None:
    answers = script(INFO=bulk(f"redis_version:{version}\r\n"), CONFIG=b"-ERR unknown command 'CONFIG'\r\n")
    async with ScriptedRedis(answers) as server, store_at(f"redis://127.0.0.1:{server.port}") as store:
        await store.check()


@pytest.mark.parametrize(
    ("refusal", "remedy"),
    [
        (
            "WRONGPASS invalid username-password pair or user is disabled.",
            "mend user and password in SIDECAR_REDIS_URL",
        ),
        ("NOAUTH Authentication required.", "mend user and password in SIDECAR_REDIS_URL"),
        ("NOPERM this user has no permissions to run the 'info' command", "give it the rules of k8s/redis-acl.conf"),
    ],
)
async def test_a_redis_that_does_not_let_us_in_is_told_with_the_remedy(refusal: str, remedy: str) -> None:
    line = f"-{refusal}\r\n".encode()
    async with ScriptedRedis(script(INFO=line, SENTINEL=line, CLUSTER=line)) as server:
        place = f"127.0.0.1:{server.port}"
        for url in (f"redis://{place}", f"redis+sentinel://{place}/main", f"redis+cluster://{place}"):
            async with store_at(url) as store:
                with pytest.raises(StoreRefused, match=remedy):
                    await store.check()
