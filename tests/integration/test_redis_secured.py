"""The whole job over TLS with client certificates, as the users that are shipped; and what each of these refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.exceptions import NoPermissionError

from sidecar.clock import Clock
from sidecar.errors import StoreUnavailable
from sidecar.store.client import Store
from sidecar.store.keys import Keyspace
from tests.servers.certificates import Certificates
from tests.servers.redis_node import RedisNode, eventually
from tests.servers.redis_secured import PASSWORDS, login_of, secured, tls_settings
from tests.servers.whole_job import Job, do_the_whole_job, lose_everything

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def certificates(servers_directory: Path) -> Certificates:
    return Certificates(servers_directory / "certificates")


@pytest.fixture
async def redis(servers_directory: Path, certificates: Certificates, tmp_path: Path) -> AsyncIterator[RedisNode]:
    node = secured(servers_directory / f"secured-{tmp_path.name}", certificates)
    node.start()
    try:
        await node.answers()
        yield node
    finally:
        node.kill()


def url(redis: RedisNode, user: str) -> str:
    return f"rediss://{login_of(user)}@127.0.0.1:{redis.port}/0"


@pytest.mark.slow
async def test_the_whole_job_runs_over_tls_as_the_users_that_are_shipped(
    redis: RedisNode, certificates: Certificates, database: str, tmp_path: Path
) -> None:
    job = Job(
        url(redis, "quota-flusher"),
        database,
        tmp_path,
        parts={
            "flusher,control": {
                "SIDECAR_POSTGRES_DSN": database,
                "SIDECAR_CATALOGUE_FILE": str(tmp_path / "catalogue.yaml"),
            },
            "authz": {"SIDECAR_REDIS_URL": url(redis, "quota-authz")},
        },
        **tls_settings(certificates),
    )
    async with job:
        await do_the_whole_job(job, ["acme"])
        await redis.ask("FLUSHALL")
        await lose_everything(job, "acme")
    assert await redis.ask("ACL", "LOG") == [], "a command or key was denied"


async def test_no_login_may_do_what_its_part_does_not_need(redis: RedisNode, certificates: Certificates) -> None:
    denied = {
        "quota-authz": ["SET sc:x 1", "XADD sc:changes * a b", "SCAN 0", "HGETALL sc:catalogue"],
        "quota-flusher": ["EXPIRE sc:x 1", "RENAME sc:a sc:b"],
    }
    everybody = ["GET other:key", "KEYS *", "FLUSHALL", "CONFIG SET maxmemory 1", "ACL LIST", "CLIENT LIST", "SHUTDOWN"]
    everybody += ["SUBSCRIBE x", "SCRIPT FLUSH", "REPLICAOF NO ONE", "MONITOR", "OBJECT ENCODING sc:x"]
    for user, commands in denied.items():
        client = redis.client()
        client.connection_pool.connection_kwargs.update(username=user, password=PASSWORDS[user])
        async with client:
            await client.execute_command("GET", "sc:x")  # type: ignore[no-untyped-call]
            for command in (*commands, *everybody):
                with pytest.raises(NoPermissionError):
                    await client.execute_command(*command.split())  # type: ignore[no-untyped-call]
            for script in ("return redis.call('FLUSHALL')", "return redis.call('GET', 'other:key')"):
                with pytest.raises(Exception, match=r"can't|permission"):
                    await client.execute_command("EVAL", script, 0)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("files", "scheme", "said"),
    [
        ({}, "rediss", "certificate verify failed"),
        ({"ca_file": "ca"}, "rediss", "StoreUnavailable"),
        ({}, "redis", "StoreUnavailable"),
    ],
    ids=["the authority is not known", "the client has no certificate", "without TLS"],
)
async def test_redis_and_program_know_each_other_or_do_not_talk(
    redis: RedisNode, certificates: Certificates, files: dict[str, str], scheme: str, said: str
) -> None:
    where = url(redis, "quota-authz").replace("rediss", scheme)
    paths = {option: str(getattr(certificates, name)) for option, name in files.items()}
    store = Store(where, Keyspace(), Clock(), identity="t", timeout_ms=5_000, **paths)
    try:
        with pytest.raises(StoreUnavailable) as failed:
            await store.check()
    finally:
        await store.close()
    assert said in f"StoreUnavailable {failed.value}"
    assert PASSWORDS["quota-authz"] not in str(failed.value)


async def test_a_server_of_another_name_is_not_believed(
    servers_directory: Path, certificates: Certificates, tmp_path: Path
) -> None:
    node = secured(servers_directory / f"secured-{tmp_path.name}", certificates)
    certificate, key = certificates.of_another_name()
    configuration = node.directory / "redis.conf"
    text = configuration.read_text().replace(str(certificates.server[0]), str(certificate))
    configuration.write_text(text.replace(str(certificates.server[1]), str(key)))
    node.start()
    files = {
        "ca_file": str(certificates.ca),
        "cert_file": str(certificates.client[0]),
        "key_file": str(certificates.client[1]),
    }
    store = Store(url(node, "quota-authz"), Keyspace(), Clock(), identity="t", timeout_ms=5_000, **files)

    async def says_why() -> bool:
        with pytest.raises(StoreUnavailable) as failed:
            await store.check()
        return "certificate is not valid for '127.0.0.1'" in str(failed.value)

    try:
        await eventually(says_why, 20, node.log)
    finally:
        await store.close()
        node.kill()
