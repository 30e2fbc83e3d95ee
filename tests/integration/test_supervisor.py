from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import ClientSession
from msgspec import structs

from sidecar import address, child, supervisor
from sidecar.errors import Conflict, SettingsInvalid
from sidecar.settings import Settings
from sidecar.state import State
from sidecar.supervisor import ChildFailed, Supervisor

CHILD = Path(__file__).parents[1] / "servers" / "supervised_child.py"
TOKEN = "admin-token-of-this-test"


@pytest.fixture(autouse=True)
def _children_find_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(CHILD.parents[2]))


def settings_in(directory: Path, **changes: object) -> Settings:
    settings = Settings(
        roles=("authz",),
        workers=2,
        state_dir=str(directory),
        authz_listen=("127.0.0.1:0",),
        local_listen="127.0.0.1:0",
        ops_listen="127.0.0.1:0",
        control_listen="127.0.0.1:0",
        admin_tokens=(TOKEN,),
        postgres_dsn="postgresql://nowhere",
        drain_s=5,
    )
    return structs.replace(settings, **changes)


def children(mode: str, directory: Path) -> supervisor.Command:
    def command(kind: str, index: int, ready_fd: int) -> list[str]:
        own = supervisor.command(kind, index, ready_fd)
        return [sys.executable, str(CHILD), mode, str(directory), *own[3:]]

    return command


@asynccontextmanager
async def running(directory: Path, mode: str = "kind", **changes: object) -> AsyncIterator[Supervisor]:
    supervised = Supervisor(
        settings_in(directory, **changes), State(directory), child_command=children(mode, directory)
    )
    await supervised.start()
    try:
        yield supervised
    finally:
        await supervised.stop()


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


async def test_start_returns_when_every_child_is_ready_and_stop_leaves_none(tmp_path: Path) -> None:
    async with running(tmp_path) as supervised:
        pids = supervised.pids()["authz"]
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
        assert all(address.parse(text).port for text in supervised.settings.authz_listen)
    assert not any(alive(pid) for pid in pids)
    assert list(tmp_path.glob("*.sock")) == []


async def test_secrets_reach_children_but_not_through_arguments_or_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIDECAR_X", "leaked")
    async with running(tmp_path) as supervised:
        assert (tmp_path / "secret-authz-0").read_text() == TOKEN
        for pid in supervised.pids()["authz"]:
            assert TOKEN.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
            assert TOKEN.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()


async def test_a_killed_worker_is_replaced_at_once_on_the_same_port(tmp_path: Path) -> None:
    async with running(tmp_path) as supervised:
        first = supervised.pids()["authz"]
        os.kill(first[0], signal.SIGKILL)
        await eventually(lambda: len(pids := supervised.pids()["authz"]) == 2 and pids[0] != first[0])
        assert supervised.pids()["authz"][1] == first[1]
        assert supervised.restarts() == {"authz": 1}


async def test_workers_stop_before_the_backoffice_so_that_the_ledger_gets_their_last_counts(tmp_path: Path) -> None:
    async with running(tmp_path, roles=("all",)):
        pass
    assert (tmp_path / "stopped").read_text().splitlines()[-1] == "backoffice"
    assert len((tmp_path / "stopped").read_text().splitlines()) == 3


async def test_a_child_that_ignores_sigterm_is_killed_after_the_drain_time(tmp_path: Path) -> None:
    async with running(tmp_path, "stubborn", workers=1, drain_s=1) as supervised:
        pid = supervised.pids()["authz"][0]
    assert not alive(pid)


async def test_a_child_that_cannot_start_ends_the_program_with_its_exit_code(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match="exit code 3 before it was ready") as caught:
        async with running(tmp_path, "refuses"):
            pass
    assert caught.value.code == 3


async def test_taken_ports_are_all_named_before_any_child_starts(tmp_path: Path) -> None:
    with address.listen("127.0.0.1:0") as one, address.listen("127.0.0.1:0") as two:
        taken = [f"127.0.0.1:{taken.getsockname()[1]}" for taken in (one, two)]
        with pytest.raises(SettingsInvalid) as caught:
            async with running(tmp_path, authz_listen=(taken[0],), ops_listen=taken[1]):
                pass
    assert all(text in str(caught.value) for text in taken)
    assert not (tmp_path / "secret-authz-0").exists()


async def test_children_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    program = f"""
import asyncio, sys, pathlib, importlib.util
spec = importlib.util.spec_from_file_location("t", {str(Path(__file__))!r})
t = importlib.util.module_from_spec(spec); spec.loader.exec_module(t)
async def main():
    async with t.running(pathlib.Path(sys.argv[1])) as supervised:
        print(*supervised.pids()["authz"], flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in (await asyncio.to_thread(parent.stdout.readline)).split()]
        assert len(pids) == 2
        parent.kill()
    await eventually(lambda: not any(alive(pid) for pid in pids))


def test_a_second_start_on_the_same_state_names_the_first(tmp_path: Path) -> None:
    first = State(tmp_path)
    first.claim()
    with pytest.raises(Conflict, match=f"in use by process {os.getpid()}"):
        State(tmp_path).claim()
    first.release()
    State(tmp_path).claim()


async def test_flush_reaches_a_child(tmp_path: Path) -> None:
    async with running(tmp_path):
        await child.flush(State(tmp_path).ops_socket("authz-1"), timeout_s=5)
        assert (tmp_path / "flushed-authz-1").exists()


async def get(supervised: Supervisor, path: str) -> tuple[int, str]:
    url = address.parse(supervised.settings.ops_listen).url
    async with ClientSession() as session, session.get(url + path) as response:
        return response.status, await response.text()


async def test_the_metrics_of_workers_add_up_and_outlive_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as supervised:
        assert "sidecar_snapshot_hits_total 2.0" in (await get(supervised, "/metrics"))[1]
        first = supervised.pids()["authz"]
        os.kill(first[0], signal.SIGKILL)
        await eventually(lambda: first[0] not in supervised.pids()["authz"] and len(supervised.pids()["authz"]) == 2)
        async with asyncio.timeout(20):
            while "sidecar_snapshot_hits_total 3.0" not in (await get(supervised, "/metrics"))[1]:
                await asyncio.sleep(0.01)
        assert 'sidecar_restarts_total{kind="authz"} 1.0' in (await get(supervised, "/metrics"))[1]


async def test_readiness_names_every_component_and_does_not_need_redis(tmp_path: Path) -> None:
    async with running(tmp_path) as supervised:
        status, body = await get(supervised, "/readyz")
        assert status == 200
        assert '"store":{"ok":false,"required":false' in body
        assert "Redis is away" in body


@pytest.mark.parametrize("question", [b"", b"\n", b"components", b"what\n", b"\xff" * 100_000])
async def test_a_child_goes_on_answering_whatever_it_is_asked(tmp_path: Path, question: bytes) -> None:
    async with running(tmp_path, workers=1):
        path = State(tmp_path).ops_socket("authz-0")
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(question)
        writer.write_eof()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        assert (await child.components(path))["listener"].ok
