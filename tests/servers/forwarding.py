"""A ledger with billed tenants and a Stripe stand-in, and forwarders that a test drives itself.

The clocks of both move together and only when the test says so. They begin at half past an hour, in which there are
minutes for several deltas.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from typing import Any

from sidecar.billing.outbox.claim import ForwarderTerms
from sidecar.billing.outbox.counters import BillingCounters
from sidecar.billing.outbox.forwarder import Forwarder, Vouch
from sidecar.billing.stripe_api import StripeApi
from sidecar.catalogue.period import bounds
from sidecar.clock import Clock
from sidecar.ledger import plans, tenants
from sidecar.ledger.connection import Ledger
from sidecar.ledger.shard import CounterRow
from tests.servers.stripe import Stripe

HOUR_S = 3_600
DAY_S = 86_400
CATALOGUE = """
metrics:
  api_calls: {kind: sum}
  llm_tokens: {kind: sum, scale: 3, reported: true}
plans:
  free:
    price: 0
    limits:
      api_calls: {included: 100, period: billing, cap: soft}
      llm_tokens: {included: 100, period: billing, cap: soft}
identity:
  - header: x-tenant-id
default_plan: free
"""
BACKED_UP = ("stripe_outbox", "stripe_lanes", "billing_customers", "shards", "usage_windows", "usage_counters")
Step = Callable[[str], None]
METRICS = {"api_calls": 0, "llm_tokens": 3}


class Forwarding:
    """Tenants have customers at Stripe, and every metric has a meter."""

    def __init__(self, ledger: Ledger, stripe: Stripe, stack: AsyncExitStack) -> None:
        self.ledger = ledger
        self.stripe = stripe
        self.now_s = 0
        self.ahead_s = 0
        self.customers: dict[str, str] = {}
        self.meters: dict[str, str] = {}
        self._stack = stack
        self._counted: dict[tuple[str, str, int, int], int] = {}

    async def open(self) -> None:
        async with self.ledger.transaction() as tx:
            await plans.apply(tx, CATALOGUE, {}, actor="test")
        api = self.api()
        for metric in METRICS:
            meter = await api.v1.billing.meters.create_async(
                {
                    "display_name": metric,
                    "event_name": f"quota_{metric}",
                    "default_aggregation": {"formula": "sum"},
                }
            )
            self.meters[metric] = meter.id
            await self.sql(
                "insert into stripe_objects (id, kind, name, metric, event_name, created)"
                " values ($1, 'meter', $2, $2, $3, ledger_now() - interval '400 days')",
                meter.id,
                metric,
                f"quota_{metric}",
            )
        await self.see_time()
        await self.to((self.now_s // HOUR_S + 1) * HOUR_S + HOUR_S // 2)

    def api(self, timeout_s: float = 30) -> StripeApi:
        """Another client of the stand-in."""
        api = StripeApi.open(self.stripe.key, self.stripe.url, timeout_s)
        self._stack.push_async_callback(api.close)
        return api

    def forwarder(
        self,
        *,
        timeout_s: float = 30,
        bulk: bool = False,
        calls_per_s: int = 950,
        step: Step = lambda _: None,
        vouch: Vouch = lambda _: True,
    ) -> Forwarder:
        """A forwarder that does something only when it is told to."""
        terms = ForwarderTerms(interval_s=1, close_delay_s=HOUR_S, calls_per_s=calls_per_s, bulk=bulk)
        return Forwarder(self.ledger, self.api(timeout_s), terms, BillingCounters(), Clock(), vouch=vouch, step=step)

    async def tenants(
        self, names: Iterable[str], anchor_s: int | None = None, billed_from_s: int = 0, *, subscribed: bool = True
    ) -> None:
        """Put tenants with a customer each; their billing periods started 10 days ago unless told otherwise.

        They have always been subscribed, unless told otherwise as well.
        """
        anchor_s = self.now_s // HOUR_S * HOUR_S - 10 * DAY_S if anchor_s is None else anchor_s
        api = self.api()
        names = list(names)
        for name in names:
            customer = await api.v1.customers.create_async({"name": name})
            self.customers[name] = customer.id
        async with self.ledger.transaction() as tx:
            for name in names:
                await tenants.put(tx, name, plan="free", actor="test", anchor_s=anchor_s)
            await tx._connection.executemany(
                "insert into billing_customers (tenant, customer, billed_from) values ($1, $2, to_timestamp($3))",
                [(name, self.customers[name], billed_from_s) for name in names],
            )
        if subscribed:
            for name in names:
                await self.subscribe(name)

    async def subscribe(
        self,
        tenant: str,
        *,
        made_s: int = 0,
        trial_s: tuple[int, int] | None = None,
        ended_s: int | None = None,
        status: str = "active",
    ) -> None:
        """Have a tenant subscribed as far as the ledger knows: since when, in trial from when to when, until when."""
        await self.sql(
            "insert into subscriptions (id, tenant, plan, status, made, trial_start, trial_end, ended)"
            " values (gen_random_uuid()::text, $1, 'free', $2, to_timestamp($3), to_timestamp($4), to_timestamp($5),"
            " to_timestamp($6))",
            tenant,
            status,
            made_s,
            *(trial_s or (None, None)),
            ended_s,
        )

    async def count(
        self,
        tenant: str,
        amount: int,
        metric: str = "api_calls",
        *,
        hour_s: int | None = None,
        period_s: int | None = None,
    ) -> None:
        """Have the ledger count more of a window, by default of this hour, as the flusher would."""
        await self.count_all([(tenant, metric, amount)], hour_s=hour_s, period_s=period_s)

    async def count_all(
        self, amounts: Iterable[tuple[str, str, int]], *, hour_s: int | None = None, period_s: int | None = None
    ) -> None:
        hour_s = (self.now_s if hour_s is None else hour_s) // HOUR_S * HOUR_S
        rows: dict[int, list[CounterRow]] = {}
        anchors = {
            row["id"]: (int(row["a"]), row["m"])
            for row in await self.sql(
                "select id, extract(epoch from anchor)::bigint as a, interval_months as m from tenants"
            )
        }
        for tenant, metric, amount in amounts:
            anchor_s, months = anchors.get(tenant, (0, 1))
            starts_s = bounds("billing", hour_s, anchor_s, months)[0] if period_s is None else period_s
            key = (tenant, metric, starts_s, hour_s)
            self._counted[key] = self._counted.get(key, 0) + amount
            shard = zlib.crc32(tenant.encode()) % 16
            rows.setdefault(shard, []).append(
                CounterRow(tenant, metric, "", starts_s, hour_s // HOUR_S, "w1", self._counted[key])
            )
        await self._merge(rows)

    async def count_again(self) -> None:
        """Everything ever counted comes to the ledger again, as from Redis and journals."""
        rows: dict[int, list[CounterRow]] = {}
        for (tenant, metric, period_s, hour_s), amount in self._counted.items():
            row = CounterRow(tenant, metric, "", period_s, hour_s // HOUR_S, "w1", amount)
            rows.setdefault(zlib.crc32(tenant.encode()) % 16, []).append(row)
        await self._merge(rows)

    async def _merge(self, rows: dict[int, list[CounterRow]]) -> None:
        for shard, found in rows.items():
            async with self.ledger.shard(shard) as tx:
                assert tx is not None
                await tx.merge(found, "free")
                await tx.raise_epoch()

    async def advance(self, seconds: int) -> None:
        """Move the ledger's clock and Stripe's."""
        self.ahead_s += seconds
        await self.ledger.set_clock_ahead(self.ahead_s)
        self.stripe.advance(f"{seconds}s")
        await self.see_time()

    async def to(self, at_s: int) -> None:
        """Move the clocks to an instant."""
        await self.see_time()
        if at_s > self.now_s:
            await self.advance(at_s - self.now_s)

    async def see_time(self) -> None:
        self.now_s = int((await self.sql("select floor(extract(epoch from ledger_now()))::bigint"))[0][0])

    async def sql(self, text: str, *arguments: Any) -> list[Any]:
        async with self.ledger.transaction() as tx:
            return list(await tx._connection.fetch(text, *arguments))

    async def back_up(self) -> None:
        """Keep what the ledger knows of usage and of Stripe."""
        for table in BACKED_UP:
            await self.sql(f"create table backup_{table} as select * from {table}")  # noqa: S608 - the names are ours

    async def restore(self) -> None:
        """Bring the ledger back to its backup."""
        for table in BACKED_UP:
            await self.sql(f"delete from {table}")  # noqa: S608 - the names are ours
        for table in reversed(BACKED_UP):
            await self.sql(f"insert into {table} select * from backup_{table}")  # noqa: S608 - the names are ours

    async def rows(self) -> list[Any]:
        """Every row of the outbox."""
        return await self.sql("select * from stripe_outbox order by tenant, metric, hour, period, number")

    async def states(self) -> dict[str, int]:
        found = await self.sql("select state, count(*) as n from stripe_outbox group by state")
        return {row["state"]: row["n"] for row in found}

    def at_stripe(self) -> dict[tuple[str, str], Decimal]:
        """What Stripe has, by tenant and metric."""
        names = {customer: tenant for tenant, customer in self.customers.items()}
        return {
            (names[total["customer"]], total["event_name"].removeprefix("quota_")): Decimal(total["total"])
            for total in self.stripe.totals()
            if Decimal(total["total"])
        }

    async def in_ledger(self) -> dict[tuple[str, str], Decimal]:
        """What the ledger has of billed tenants, in whole units."""
        found = await self.sql(
            "select w.tenant, w.metric, sum(w.amount) as amount from usage_windows as w"
            " join billing_customers as c on c.tenant = w.tenant where w.scope = '' group by 1, 2"
        )
        return {(r["tenant"], r["metric"]): Decimal(int(r["amount"])).scaleb(-METRICS[r["metric"]]) for r in found}

    async def agree(self) -> None:
        """Stripe's totals equal the ledger's, and no identifier was refused for any reason but that it exists."""
        assert self.at_stripe() == await self.in_ledger()

    def refusals(self) -> list[dict[str, Any]]:
        """What Stripe refused for another reason than that it has it already."""
        return [item for item in self.stripe.state("refused")["refused"] if "already exists" not in item["message"]]


@asynccontextmanager
async def forwarding(database: str, stripe: Stripe) -> AsyncIterator[Forwarding]:
    """Open a ledger beside a stand-in, with meters, and close everything that a test opened."""
    async with AsyncExitStack() as stack:
        ledger = await Ledger.open(database, connections_max=8)
        stack.push_async_callback(ledger.close)
        place = Forwarding(ledger, stripe, stack)
        await place.open()
        yield place
