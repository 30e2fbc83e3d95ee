from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.catalogue.model import Catalogue, IdentityRule
from sidecar.catalogue.policy import Policy
from sidecar.errors import SidecarError
from sidecar.gateway.limits import ListenerLimits
from sidecar.gateway.listener import DecisionListener
from tests.integration.listener_peer import Judge, Peer, Times, check, connect, listening, until


@pytest.fixture
def judge() -> Judge:
    return Judge()


@pytest.fixture(params=["tcp", "unix"])
async def listener(request: pytest.FixtureRequest, judge: Judge, tmp_path: Path) -> AsyncIterator[DecisionListener]:
    address = "127.0.0.1:0" if request.param == "tcp" else f"unix:{tmp_path}/authz.sock"
    async with listening(judge, address) as started:
        yield started


@pytest.fixture
async def peer(listener: DecisionListener) -> AsyncIterator[Peer]:
    connected = await connect(listener.addresses[0])
    yield connected
    await connected.close()


async def test_one_connection_serves_many_checks(peer: Peer, judge: Judge) -> None:
    for number in range(5):
        answer = await peer.ask(check("acme", f"id-{number}"))
        assert (answer.status, answer.id, answer.headers["connection"]) == (200, f"id-{number}", "keep-alive")
    denial = await peer.ask(check("deny"))
    assert (denial.status, denial.headers["content-type"]) == (429, "application/problem+json")
    assert (await peer.ask(check("acme", "after"))).id == "after"
    assert len(judge.asked) == 7


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "PURGE"]
)
async def test_every_method_is_decided(peer: Peer, method: str) -> None:
    assert (await peer.ask(check(method=method, request_id="x"))).id == "x"
    assert (await peer.ask(check(method=method, request_id="y"))).id == "y"


async def test_pipelined_checks_are_answered_in_order(peer: Peer) -> None:
    peer.send("".join(check("acme", f"id-{number}") for number in range(300)))
    assert [(await peer.answer()).id for _ in range(300)] == [f"id-{number}" for number in range(300)]


async def test_a_decision_that_waits_holds_back_only_what_comes_after_it(peer: Peer, judge: Judge) -> None:
    ids = ["a", "b", "slow", "c", "d"]
    peer.send("".join(check("wait" if name == "slow" else "acme", name) for name in ids))
    assert [(await peer.answer()).id for _ in range(2)] == ["a", "b"]
    await judge.waiting.wait()
    peer.send(check("acme", "e"))
    assert judge.asked == [("acme", "a"), ("acme", "b")]
    judge.released.set()
    assert [(await peer.answer()).id for _ in range(4)] == ["slow", "c", "d", "e"]


async def test_several_waiting_decisions_and_a_refusal_keep_their_order(peer: Peer, judge: Judge) -> None:
    peer.send(check("wait1", "1") + check("acme", "2") + check("wait2", "3") + check("deny") + "nonsense\r\n\r\n")
    await judge.waiting.wait()
    judge.released.set()
    assert [(await peer.answer()).id for _ in range(3)] == ["1", "2", "3"]
    assert [(await peer.answer()).status for _ in range(2)] == [429, 400]
    assert await peer.closed() == b""


async def test_a_long_read_behind_a_waiting_decision_is_kept(peer: Peer, judge: Judge) -> None:
    ids = [f"id-{number}" for number in range(2_000)]
    peer.send(check("wait", "slow") + "".join(check("acme", name) for name in ids))
    await judge.waiting.wait()
    judge.released.set()
    assert [(await peer.answer()).id for _ in range(2_001)] == ["slow", *ids]


async def test_a_peer_that_leaves_while_its_decision_waits_harms_nobody(
    listener: DecisionListener, judge: Judge
) -> None:
    leaving = await connect(listener.addresses[0])
    leaving.send(check("wait", "gone") + check("acme", "behind"))
    await judge.waiting.wait()
    leaving.writer.transport.abort()
    await leaving.close()
    judge.released.set()
    await until(lambda: listener.counters.connections == 0)
    staying = await connect(listener.addresses[0])
    assert (await staying.ask(check("acme", "here"))).id == "here"
    await staying.close()


async def test_a_peer_may_close_its_side_before_the_answer(peer: Peer, judge: Judge) -> None:
    peer.send(check("wait", "slow"))
    await judge.waiting.wait()
    peer.writer.write_eof()
    judge.released.set()
    assert (await peer.answer()).id == "slow"
    assert await peer.closed() == b""


async def test_a_check_may_come_byte_by_byte(peer: Peer) -> None:
    whole = check("acme", "slowly", "content-length: 3", method="POST") + "abc" + check("acme", "next")
    for byte in whole.encode():
        peer.send(bytes([byte]))
        await peer.writer.drain()
        await asyncio.sleep(0)
    assert (await peer.answer()).id == "slowly"
    assert (await peer.answer()).id == "next"


async def test_http_1_0_is_closed_unless_it_asks_to_stay(listener: DecisionListener) -> None:
    leaving = await connect(listener.addresses[0])
    answer = await leaving.ask("GET /envoy/ HTTP/1.0\r\nx-tenant-id: acme\r\n\r\n")
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert await leaving.closed() == b""
    staying = await connect(listener.addresses[0])
    for _ in range(2):
        answer = await staying.ask("GET /envoy/ HTTP/1.0\r\nConnection: keep-alive\r\nx-tenant-id: acme\r\n\r\n")
        assert answer.headers["connection"] == "keep-alive"
    await staying.close()


async def test_connection_close_is_honoured(peer: Peer, judge: Judge) -> None:
    peer.send(check("acme", "last", "Connection: close") + check("acme", "ignored"))
    answer = await peer.answer()
    assert (answer.id, answer.headers["connection"]) == ("last", "close")
    assert await peer.closed() == b""
    assert judge.asked == [("acme", "last")]


@pytest.mark.parametrize("more", [["Upgrade: websocket", "Connection: Upgrade"], ["Upgrade: h2c"]])
async def test_an_upgrade_is_decided_and_then_closed(peer: Peer, judge: Judge, more: list[str]) -> None:
    peer.send(check("acme", "up", *more) + check("acme", "smuggled"))
    answer = await peer.answer()
    assert (answer.id, answer.headers["connection"]) == ("up", "close")
    assert await peer.closed() == b""
    assert judge.asked == [("acme", "up")]


async def test_connect_is_refused_and_closed(peer: Peer, judge: Judge) -> None:
    peer.send("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n" + check("acme", "smuggled"))
    assert (await peer.answer()).status == 404
    assert await peer.closed() == b""
    assert judge.asked == []


async def test_an_expectation_is_met_in_its_turn(peer: Peer, judge: Judge) -> None:
    peer.send(check("wait", "1") + check("acme", "2", "Expect: 100-continue", "content-length: 3", method="POST"))
    await judge.waiting.wait()
    judge.released.set()
    assert (await peer.answer()).id == "1"
    assert (await peer.answer()).status == 100
    assert (await peer.ask("abc")).id == "2"
    assert (await peer.ask(check("acme", "3", "Expect: miracles"))).status == 417


async def test_identity_tricks_are_conflicts(peer: Peer, judge: Judge) -> None:
    for trick in ("X-TENANT-ID: victim", "X_Tenant_Id: victim", "x.tenant.id: victim", "x-tenant.id: victim"):
        answer = await peer.ask(check("me", "", trick))
        assert answer.status == 401
        assert b"identity_conflict" in answer.body
    for harmless in ("x-quota-tenant: victim", "X-Quota-Status: ok", "x-other_header: y", "x-tenant: victim"):
        assert (await peer.ask(check("me", "", harmless))).headers["x-quota-tenant"] == "me"
    assert {tenant for tenant, _ in judge.asked} == {"me"}


async def test_trailers_are_not_headers_of_this_check_or_the_next(peer: Peer, judge: Judge) -> None:
    head = "POST /envoy/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    await peer.ask(head + "3\r\nabc\r\n0\r\nx-tenant-id: victim\r\nX_Tenant_Id: victim\r\n\r\n")
    await peer.ask("GET /envoy/ HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await peer.ask(check("acme", "x"))).id == "x"
    assert judge.asked == [(None, ""), (None, ""), ("acme", "x")]


async def test_a_decision_that_raises_is_500_and_logged_once(
    peer: Peer, listener: DecisionListener, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        assert (await peer.ask(check("bug"))).status == 500
        listener.sweep()
    assert (await peer.ask(check("acme", "fine"))).id == "fine"
    listener.sweep()
    listener.sweep()
    assert [
        (record.levelname, record.name) for record in caplog.records if record.name == "sidecar.gateway.listener"
    ] == [("ERROR", "sidecar.gateway.listener")]


async def test_another_catalogue_is_in_force_for_the_next_check(
    peer: Peer, listener: DecisionListener, judge: Judge
) -> None:
    assert (await peer.ask(check("acme"))).headers["x-quota-tenant"] == "acme"
    rules = (IdentityRule(kind="header", header="x-other"),)
    judge.policy = Policy(Catalogue(metrics={}, plans={}, routes=(), identity=rules), judge.policy.routes, 2)
    listener.sweep()
    answer = await peer.ask(check("acme", "", "x-other: them"))
    assert answer.headers["x-quota-tenant"] == "them"


async def test_counters_say_what_happened(peer: Peer, listener: DecisionListener) -> None:
    await peer.ask(check("acme"))
    await peer.ask(check("deny"))
    await peer.ask(check(path="/elsewhere"))
    await peer.ask(
        "GET /nginx HTTP/1.1\r\nHost: a\r\nx-original-method: GET\r\nx-original-uri: /\r\nx-tenant-id: t\r\n\r\n"
    )
    counters = listener.counters
    assert counters.decisions["envoy"]["allowed"] == counters.decisions["nginx"]["allowed"] == 1
    assert counters.decisions["envoy"]["limit_reached"] == 1
    assert (counters.unknown_paths, counters.connections, counters.malformed) == (1, 1, 0)


class TestAddresses:
    async def test_a_taken_port_is_a_clear_error(self, judge: Judge) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(SidecarError, match="taken by another process"):
                await DecisionListener(judge).start(["127.0.0.1:0", address])

    async def test_two_listeners_may_share_a_port_when_told(self, judge: Judge) -> None:
        first = DecisionListener(judge)
        await first.start(["127.0.0.1:0"], reuse_port=True)
        second = DecisionListener(judge)
        await second.start(first.addresses, reuse_port=True)
        assert first.addresses == second.addresses
        await first.stop()
        peer = await connect(second.addresses[0])
        assert (await peer.ask(check("acme", "x"))).id == "x"
        await peer.close()
        await second.stop()

    async def test_a_stale_socket_file_is_replaced_and_closed_to_others(self, judge: Judge, tmp_path: Path) -> None:
        path = tmp_path / "authz.sock"
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
        async with listening(judge, f"unix:{path}") as listener:
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            peer = await connect(listener.addresses[0])
            assert (await peer.ask(check("acme", "x"))).id == "x"
            with pytest.raises(SidecarError, match="served by another process"):
                await DecisionListener(judge).start([f"unix:{path}"])
            await peer.close()
        assert not path.exists()

    async def test_off_loopback_nobody_is_served_without_a_secret(self, judge: Judge) -> None:
        with pytest.raises(SidecarError, match="x-quota-secret"):
            await DecisionListener(judge).start(["0.0.0.0:0"])
        async with listening(judge, "0.0.0.0:0", "127.0.0.1:0", secrets=["old-secret", "new-secret"]) as listener:
            outside, inside = listener.addresses
            peer = await connect(f"127.0.0.1:{outside.rpartition(chr(58))[2]}")
            for secret in ("old-secret", "new-secret"):
                assert (await peer.ask(check("acme", "x", f"X-Quota-Secret: {secret}"))).status == 200
            twice = check("acme", "x", "x-quota-secret: guess", "x-quota-secret: new-secret")
            assert (await peer.ask(twice + check("acme", "y", "x-quota-secret: new-secret"))).status == 403
            assert await peer.closed() == b""
            neighbour = await connect(inside)
            assert (await neighbour.ask(check("acme", "x"))).status == 200
            await neighbour.close()
        assert ("acme", "y") not in judge.asked

    async def test_a_secret_can_be_asked_for_everywhere(self, judge: Judge) -> None:
        with pytest.raises(SidecarError, match="secret"):
            DecisionListener(judge, require_secret=True)
        async with listening(judge, require_secret=True, secrets=["s" * 20]) as listener:
            peer = await connect(listener.addresses[0])
            assert (await peer.ask(check())).status == 403
            assert await peer.closed() == b""
            assert listener.counters.secrets_refused == 1


class TestStopping:
    async def test_what_waits_is_answered_and_idle_peers_are_closed(self, judge: Judge) -> None:
        listener = DecisionListener(judge)
        await listener.start(["127.0.0.1:0"])
        address = listener.addresses[0]
        idle, asking = await connect(address), await connect(address)
        await idle.ask(check())
        asking.send(check("wait", "slow") + check("acme", "behind"))
        await judge.waiting.wait()
        stopping = asyncio.ensure_future(listener.stop(5))
        assert await idle.closed() == b""
        with pytest.raises(ConnectionError):
            await connect(address)
        judge.released.set()
        first, second = await asking.answer(), await asking.answer()
        assert (first.id, second.id, second.headers["connection"]) == ("slow", "behind", "close")
        await stopping
        assert await asking.closed() == b""
        assert listener.counters.connections == 0

    async def test_the_deadline_cuts_what_is_left(self, judge: Judge) -> None:
        listener = DecisionListener(judge)
        await listener.start(["127.0.0.1:0"])
        peer = await connect(listener.addresses[0])
        peer.send(check("wait"))
        await judge.waiting.wait()
        await listener.stop(0.01)
        assert await peer.closed() == b""

    async def test_a_half_sent_check_may_be_finished(self, judge: Judge) -> None:
        listener = DecisionListener(judge)
        await listener.start(["127.0.0.1:0"])
        peer = await connect(listener.addresses[0])
        whole = check("acme", "late")
        peer.send(whole[:30])
        await until(lambda: any(connection._open for connection in listener._connections()))
        stopping = asyncio.ensure_future(listener.stop(5))
        await asyncio.sleep(0)
        answer = await peer.ask(whole[30:])
        assert (answer.id, answer.headers["connection"]) == ("late", "close")
        await stopping
        assert await peer.closed() == b""

    async def test_it_can_be_started_again(self, judge: Judge) -> None:
        listener = DecisionListener(judge)
        for _ in range(2):
            await listener.start(["127.0.0.1:0"])
            peer = await connect(listener.addresses[0])
            assert (await peer.ask(check("acme", "x"))).id == "x"
            await listener.stop()
            await peer.close()


async def test_the_timer_sweeps_by_itself(judge: Judge) -> None:
    times = Times()
    async with listening(judge, clock=times, limits=ListenerLimits(idle_timeout_ms=10)) as listener:
        peer = await connect(listener.addresses[0])
        await peer.ask(check())
        times.ms += 1_000
        assert await peer.closed() == b""
        assert listener.counters.connections == 0
