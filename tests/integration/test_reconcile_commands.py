"""`sidecar stripe reconcile`, `parked` and `retry`, and the Stripe part of `sidecar verify`, as operators run them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sidecar.billing.reconciliation.reconcile import Comparison
from sidecar.billing.reconciliation.shown import Shown
from sidecar.verification import Difference, stripe_differences
from tests.servers.forwarding import Forwarding, forwarding
from tests.servers.stripe import KEY, Stripe


@pytest.fixture
async def place(database: str, stripe: Stripe) -> AsyncIterator[Forwarding]:
    async with forwarding(database, stripe) as opened:
        await opened.tenants(["a", "b"])
        await opened.count("a", 7)
        await opened.count("a", 1_500, "llm_tokens")
        await opened.forwarder().flush()
        yield opened


class Operator:
    """Runs commands against one installation."""

    def __init__(self, database: str, stripe: Stripe, redis_url: str) -> None:
        self._environment = {
            **os.environ,
            "SIDECAR_POSTGRES_DSN": database,
            "SIDECAR_REDIS_URL": redis_url,
            "SIDECAR_STRIPE_KEY": KEY,
            "SIDECAR_STRIPE_URL": stripe.url,
        }

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "sidecar", *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    async def json(self, *arguments: str) -> tuple[int, Any]:
        code, out, err = await self.run(*arguments, "--json")
        assert out, err
        return code, json.loads(out)


@pytest.fixture
def operator(database: str, stripe: Stripe, redis_url: str) -> Operator:
    return Operator(database, stripe, redis_url)


async def foreign(place: Forwarding) -> None:
    await place.api().v1.billing.meter_events.create_async(
        {
            "event_name": "quota_llm_tokens",
            "identifier": "somebody-elses",
            "payload": {"stripe_customer_id": place.customers["a"], "value": "0.25"},
            "timestamp": place.now_s,
        }
    )


async def test_the_command_tells_what_differs_and_fails_only_on_what_nothing_explains(
    place: Forwarding, operator: Operator
) -> None:
    await place.count("a", 5)
    code, found = await operator.json("stripe", "reconcile")
    assert code == 0
    assert (found["lanes"], found["unexplained"], found["unread"], found["repairs"]) == (4, False, [], [])
    assert len(found["days"]) == len(found["periods"]) == 1
    [day] = found["days"]
    assert {name: day[name] for name in ("tenant", "metric", "ledger", "stripe", "drift", "explanation")} == {
        "tenant": "a",
        "metric": "api_calls",
        "ledger": 12,
        "stripe": 7,
        "drift": -5,
        "explanation": {"waiting": -5},
    }
    assert day["outbox"] == {"delivered": 7, "waiting": 5, "in_doubt": 0, "parked": 0, "late": 0}
    await foreign(place)
    code, found = await operator.json("stripe", "reconcile", "--tenant", "a", "--repair")
    assert code == 1
    [day] = [day for day in found["days"] if day["metric"] == "llm_tokens"]
    assert (day["ledger"], day["stripe"], day["explanation"]) == (1.5, 1.75, {"unexplained": 0.25})
    code, out, _ = await operator.run("stripe", "reconcile", "--since", day["day"])
    assert code == 1
    assert "unexplained 0.25" in out
    assert "4 lanes compared, 1 days with unexplained drift" in out


async def test_a_tenant_without_a_customer_is_named(place: Forwarding, operator: Operator) -> None:
    code, _, err = await operator.run("stripe", "reconcile", "--tenant", "nobody")
    assert code == 1
    assert "no customer" in err


async def test_parked_usage_is_listed_and_sent_again(place: Forwarding, operator: Operator) -> None:
    assert await operator.json("stripe", "parked") == (0, [])
    await place.sql(
        "update stripe_outbox set state = 'parked', reason = 'no meter', delivered = null, first_sent = null"
    )
    code, rows = await operator.json("stripe", "parked", "--tenant", "a")
    assert code == 0
    assert {(row["metric"], row["amount"], row["reason"]) for row in rows} == {
        ("api_calls", 7, "no meter"),
        ("llm_tokens", 1.5, "no meter"),
    }
    code, out, _ = await operator.run("stripe", "retry", rows[0]["identifier"])
    assert (code, out) == (0, "1 will be sent again\n")
    await place.sql("update stripe_outbox set first_sent = at where state = 'parked'")
    code, out, _ = await operator.run("stripe", "retry", "--all")
    assert code == 1
    assert "0 will be sent again\n1 may have arrived" in out
    code, out, _ = await operator.run("stripe", "retry", "--all", "--sure")
    assert (code, out) == (0, "1 will be sent again\n")
    code, _, err = await operator.run("stripe", "retry")
    assert code == 2
    assert "--all" in err


async def test_verify_has_a_row_for_what_differs_at_stripe(place: Forwarding, operator: Operator) -> None:
    comparison = Comparison(place.ledger, Shown(place.api(), calls_per_s=10_000), pause_s=0)
    assert await stripe_differences(comparison) == []
    await foreign(place)
    [row] = await stripe_differences(comparison)
    assert row == Difference("a", row.what, "outbox", 1_500, "Stripe", 1_750)
    assert row.what.startswith("meter llm_tokens on 20")
    code, found = await operator.json("verify")
    assert code == 1
    assert [one for one in found if one["right_name"] == "Stripe"] == [
        {
            "tenant": "a",
            "what": row.what,
            "left_name": "outbox",
            "left": 1_500,
            "right_name": "Stripe",
            "right": 1_750,
        }
    ]
