from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import ClientSession

from sidecar import address, ops
from sidecar.child import Component, Member
from sidecar.clock import Clock
from sidecar.errors import SettingsInvalid
from sidecar.ops import Ops
from sidecar.telemetry import Reading

HERE = Path("/nowhere")


class Nobody:
    """A fleet of processes that never answer."""

    def members(self) -> list[Member]:
        return [Member("authz-0", "authz", 1, HERE / "ops-0.sock")]

    def restarts(self) -> dict[str, int]:
        return {}

    def components(self) -> dict[str, Component]:
        return {}

    def reading(self) -> Reading:
        return {}


@asynccontextmanager
async def serving(clock: Clock) -> AsyncIterator[tuple[ClientSession, str]]:
    listen, holder = address.reserve("127.0.0.1:0")
    server = Ops(listen, Nobody(), clock)
    await server.start()
    async with ClientSession() as session:
        yield session, address.parse(listen).url
    await server.stop()
    holder.close()


async def test_health_is_about_this_process_alone_and_readiness_about_the_others() -> None:
    async with serving(Clock()) as (session, url):
        async with session.get(f"{url}/healthz") as answer:
            assert answer.status == 200
        async with session.get(f"{url}/readyz") as answer:
            assert answer.status == 503
            assert "does not answer" in await answer.text()
        async with session.get(f"{url}/metrics") as answer:
            assert answer.status == 200
            assert 'sidecar_processes{kind="authz"} 0.0' in await answer.text()


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("POST", "/healthz", 405)])
async def test_a_wrong_path_or_method_is_a_problem(method: str, path: str, status: int) -> None:
    async with serving(Clock()) as (session, url), session.request(method, url + path) as answer:
        problem = await answer.json(content_type="application/problem+json")
        assert (answer.status, problem["status"]) == (status, status)
        assert path in problem["detail"]
        assert ("allow" in answer.headers) == (status == 405)


async def test_the_clock_moves_in_development(tmp_path: Path) -> None:
    clock = Clock(tmp_path / "clock")
    async with serving(clock) as (session, url):
        before = clock.wall_ms()
        async with session.post(f"{url}/dev/clock", json={"advance": "1d12h"}) as answer:
            assert answer.status == 200
            assert (await answer.json())["offset_ms"] == 36 * 3_600_000
        assert clock.wall_ms() - before >= 36 * 3_600_000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"advance": 5}',
        b'{"advance": "-1h"}',
        b'{"advance": "1h", "x": 1}',
        b"[]",
        b'{"advance": "\xff"}',
        b'{"advance": ' + b"[" * 2_000,
    ],
)
async def test_a_bad_move_of_the_clock_is_refused_with_what_would_be_right(tmp_path: Path, body: bytes) -> None:
    clock = Clock(tmp_path / "clock")
    async with serving(clock) as (session, url), session.post(f"{url}/dev/clock", data=body) as answer:
        assert answer.status == 400
        assert '{"advance": "36h"}' in (await answer.json())["error"]
    assert clock.advance(0) == 0


async def test_the_clock_of_production_has_no_handle() -> None:
    async with (
        serving(Clock()) as (session, url),
        session.post(f"{url}/dev/clock", json={"advance": "1h"}) as answer,
    ):
        assert answer.status == 404


@pytest.mark.parametrize("text", ["", "h", "1", "1h1d", "1.5h", "1 h", "+1h", "1H", "\u0661h", "99999d"])
def test_durations_are_strict(text: str) -> None:
    with pytest.raises(SettingsInvalid):
        ops.duration_ms(text)


def test_a_program_is_ready_while_one_process_of_each_kind_is() -> None:
    good, bad = {"listener": Component(ok=True)}, {"listener": Component(ok=False)}
    workers = [Member(f"authz-{index}", "authz", 1, HERE) for index in range(2)]
    backoffice = Member("backoffice", "backoffice", 1, HERE)
    assert ops.readiness([(workers[0], good), (workers[1], None)])[0]
    assert not ops.readiness([(workers[0], bad), (workers[1], None)])[0]
    assert not ops.readiness([(workers[0], good), (backoffice, bad)])[0]
    assert not ops.readiness([])[0]


def test_what_is_not_required_is_told_and_does_not_count() -> None:
    ready, parts = ops.readiness(
        [(Member("authz-0", "authz", 1, HERE), {"journal": Component(ok=False, required=False, detail="disk full")})]
    )
    assert ready
    assert parts["journal"] == {"ok": False, "required": False, "processes": {"authz-0": "disk full"}}
