"""`sidecar dev`: everything on one machine, with real embedded servers and a clock that can be moved.

Guarantees: a second start on the same state goes on where the first ended; however this ends, no child is left.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import click
from msgspec import Struct, structs

from sidecar import address, child, logs, settings
from sidecar.cli import demo, demo_billing, guide
from sidecar.cli.catalogue import default_file
from sidecar.cli.followed import follow
from sidecar.cli.stripe_account import standin_of
from sidecar.cli.target import DEV_STATE, show_json
from sidecar.clock import Clock
from sidecar.control.catalogues import Catalogues
from sidecar.embedded import EmbeddedPostgres, EmbeddedRedis, standin
from sidecar.embedded.server import EmbeddedServer
from sidecar.embedded.standin import EmbeddedStripe
from sidecar.errors import SidecarError
from sidecar.ledger import migrate
from sidecar.ledger.connection import Ledger
from sidecar.settings import Settings
from sidecar.signals import Stop, end
from sidecar.state import DevServers, State
from sidecar.supervisor import Supervisor

LOOK_S = 0.5
FIRST_FLUSH_S = 30
WEBHOOK_PATH = "/webhooks/stripe"

log = logging.getLogger(__name__)


class Options(Struct, frozen=True):
    """What the command line said."""

    ports: dict[str, int]
    state: str
    catalogue: str | None
    workers: int
    as_json: bool


class Embedded(Struct, frozen=True):
    """The servers that `sidecar dev` runs itself; ``stripe`` is None in an installation without the stand-in."""

    redis: EmbeddedRedis
    postgres: EmbeddedPostgres
    stripe: EmbeddedStripe | None

    @property
    def servers(self) -> list[EmbeddedServer]:
        return [server for server in (self.redis, self.postgres, self.stripe) if server is not None]


@click.command()
@click.option(
    "--authz-port", type=click.IntRange(0, 65535), default=9000, show_default=True, help="0 picks a free one."
)
@click.option("--local-port", type=click.IntRange(0, 65535), default=9001, show_default=True)
@click.option("--ops-port", type=click.IntRange(0, 65535), default=9002, show_default=True)
@click.option("--control-port", type=click.IntRange(0, 65535), default=9003, show_default=True)
@click.option("--state", metavar="DIR", help="State directory [default: SIDECAR_STATE, else .sidecar].")
@click.option("--catalogue", metavar="FILE", help="Catalogue to apply and watch [default: the agent platform].")
@click.option("--workers", type=int, default=1, show_default=True, help="Authz processes that share the ports.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line, once ready, instead of a guide.")
def dev(
    authz_port: int,
    local_port: int,
    ops_port: int,
    control_port: int,
    state: str | None,
    catalogue: str | None,
    workers: int,
    *,
    as_json: bool,
) -> None:
    """Run everything here, with embedded Redis and Postgres and demo tenants."""
    ports = {"authz": authz_port, "local": local_port, "ops": ops_port, "control": control_port}
    directory = state or os.environ.get("SIDECAR_STATE") or DEV_STATE
    asyncio.run(_dev(Options(ports, directory, catalogue, workers, as_json)))


async def _dev(options: Options) -> None:
    state = State(Path(options.state))
    state.claim()
    try:
        with Stop() as stop:
            running = asyncio.create_task(_run(options, state, stop))
            asked = asyncio.create_task(stop.wait())
            # Whoever asks to stop while it starts does not have to wait for the start.
            await asyncio.wait([running, asked], return_when=asyncio.FIRST_COMPLETED)
            running.cancel()
            asked.cancel()
            results = await asyncio.gather(running, return_exceptions=True)
            if isinstance(results[0], Exception):
                raise results[0]
    finally:
        state.dev_file.unlink(missing_ok=True)
        state.release()


async def _run(options: Options, state: State, stop: Stop) -> None:
    secrets = demo.kept(state)
    async with AsyncExitStack() as stack:
        found = _settings(options, state, secrets.admin_token)
        logs.configure(found.log_level, "dev")
        embedded = _embedded(state, found)
        for server in embedded.servers:
            stack.push_async_callback(server.stop)
        await asyncio.gather(*(server.start() for server in embedded.servers))
        found = _connected(found, embedded)
        await migrate.migrate(found.postgres_dsn)
        ledger = await Ledger.open(found.postgres_dsn, shards=found.shards, connections_max=3)
        stack.push_async_callback(ledger.close)
        clock = Clock(state.clock_file)

        async def clock_moved(offset_ms: int) -> None:
            await ledger.set_clock_ahead(offset_ms // 1000)

        await clock_moved(clock.offset_ms)
        file = await follow(state, options.catalogue, default_file(), ledger)
        async with ledger.transaction() as tx:
            catalogue = await Catalogues().in_force(tx)
            await demo.put_tenants(tx, catalogue, secrets)
            scene = await guide.scene(tx, catalogue, file.path, clock.wall_s())
        demo.keep(state, secrets)
        supervisor = Supervisor(found, state, clock_moved=clock_moved, catalogue_file=file.component)
        stop.insist_with(supervisor.kill)
        stack.push_async_callback(supervisor.stop)
        await supervisor.start()
        if embedded.stripe is not None:
            await embedded.stripe.deliver_to(address.parse(supervisor.settings.control_listen).url + WEBHOOK_PATH)
            await demo_billing.bill(ledger, found, catalogue, clock)
        # Ready means that the catalogue, tenants and keys are in Redis too, and that every worker has heard of them.
        for process in ("backoffice", *(str(index) for index in range(found.workers))):
            await child.flush(state.ops_socket(process), FIRST_FLUSH_S)
        await stack.enter_async_context(_background(file.watch()))
        await _serve(options, state, supervisor, embedded, secrets, scene)


async def _serve(
    options: Options,
    state: State,
    supervisor: Supervisor,
    embedded: Embedded,
    secrets: demo.Kept,
    scene: guide.Scene,
) -> None:
    """Tell where everything is, then keep that up to date and the servers running."""
    servers = _servers(supervisor, embedded, secrets.admin_token)
    state.write_dev(servers)
    if options.as_json:
        show_json(servers)
    else:
        click.echo(guide.text(servers, secrets, state, scene))
    sys.stdout.flush()
    while True:
        await asyncio.sleep(LOOK_S)
        for server in embedded.servers:
            await _revive(server)
        now = _servers(supervisor, embedded, secrets.admin_token)
        if now != servers:
            servers = now
            state.write_dev(servers)


async def _revive(server: EmbeddedServer) -> None:
    """Start a server again that ended, as an operator's service manager would."""
    if server.running:
        return
    log.warning("server ended and is started again", extra=logs.fields(server=server.name))
    try:
        await server.start()
    except SidecarError as error:
        log.error("server did not start", extra=logs.fields(server=server.name, cause=str(error)))  # noqa: TRY400


def _settings(options: Options, state: State, admin_token: str) -> Settings:
    """The settings of all roles here; the environment may still set what is not about addresses."""
    ports = options.ports
    # Here every writer is known: after a restart nobody has to wait a minute for one that may still be out there.
    hold = os.environ.get("SIDECAR_RESTORE_HOLD", "reported")
    return settings.load(
        os.environ,
        restore_hold=hold,
        roles=("all",),
        workers=options.workers,
        state_dir=str(state.path),
        authz_listen=(f"127.0.0.1:{ports['authz']}",),
        local_listen=f"127.0.0.1:{ports['local']}",
        ops_listen=f"127.0.0.1:{ports['ops']}",
        control_listen=f"127.0.0.1:{ports['control']}",
        admin_tokens=(admin_token,),
        redis_url="redis://127.0.0.1:0/0",
        postgres_dsn="postgresql://127.0.0.1:0/sidecar",
        catalogue_file="",
        clock_file=str(state.clock_file),
    )


def _embedded(state: State, found: Settings) -> Embedded:
    """The servers to run; no stand-in where it is not installed, or where the environment names a Stripe account."""
    stripe = None
    if standin.is_there() and not found.stripe_key:
        stripe = standin_of(state)
    return Embedded(EmbeddedRedis(state.path / "redis"), EmbeddedPostgres(state.path / "postgres"), stripe)


def _connected(found: Settings, embedded: Embedded) -> Settings:
    """The settings with where the servers are, now that they run."""
    found = structs.replace(found, redis_url=embedded.redis.url, postgres_dsn=embedded.postgres.dsn)
    stripe = embedded.stripe
    if stripe is None:
        return found
    secrets = (stripe.webhook_secret,)
    return structs.replace(found, stripe_url=stripe.url, stripe_key=stripe.key, stripe_webhook_secrets=secrets)


def _servers(supervisor: Supervisor, embedded: Embedded, token: str) -> DevServers:
    found, redis, postgres = supervisor.settings, embedded.redis, embedded.postgres
    return DevServers(
        authz=address.parse(found.authz_listen[0]).url,
        local=address.parse(found.local_listen).url,
        ops=address.parse(found.ops_listen).url,
        control=address.parse(found.control_listen).url,
        redis=redis.url,
        postgres=postgres.dsn,
        stripe=found.stripe_url if found.stripe_key else "",
        admin_token=token,
        pids={"authz": supervisor.pids().get("authz", []), "redis": redis.pid, "postgres": postgres.pid},
    )


@asynccontextmanager
async def _background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        await end([task])
