"""The Stripe stand-in in a thread of the tests."""

from __future__ import annotations

from typing import Any

import aiohttp

from sidecar.embedded.stripe.server import StripeStandIn
from tests.servers.background import Background

KEY = "sk_test_standin0123456789"
WEBHOOK_SECRET = "whsec_standin0123456789"


class Stripe(Background):
    """Listens on a free port of the loopback; stop() and start() keep the port and everything it was told."""

    def __init__(self, key: str = KEY, webhook_secret: str = WEBHOOK_SECRET) -> None:
        super().__init__()
        self.key = key
        self.webhook_secret = webhook_secret
        self.standin = StripeStandIn(key)

    @property
    def url(self) -> str:
        return self.standin.url

    async def open(self) -> None:
        await self.standin.start()

    async def close(self) -> None:
        await self.standin.stop()

    def state(self, *only: str) -> dict[str, Any]:
        """Everything it was told, or the named parts."""
        found: dict[str, Any] = self.control("GET", "/_state", query={"only": ",".join(only)})
        return found

    def totals(self) -> list[dict[str, Any]]:
        """Sums per customer and meter."""
        found: list[dict[str, Any]] = self.control("GET", "/_totals")
        return found

    def faults(self, *rules: dict[str, Any]) -> None:
        """Add rules of what fails; without any, nothing fails from now on."""
        if rules:
            self.control("POST", "/_faults", list(rules))
        else:
            self.control("DELETE", "/_faults")

    def advance(self, duration: str) -> None:
        """Move its clock, as ``36h``, and do what became due."""
        self.control("POST", "/_clock", {"advance": duration})

    def deliver_to(self, url: str, *secrets: str) -> None:
        """Deliver every event to an endpoint, signed with the secrets (by default ``webhook_secret``)."""
        self.standin.deliver_to(url, list(secrets or (self.webhook_secret,)))

    def check_out(self, session: str, card: str = "pm_card_visa") -> dict[str, Any]:
        """Complete a checkout session as a person would; without a card for card ""."""
        found: dict[str, Any] = self.control("POST", "/_checkout", {"session": session, "card": card})
        return found

    def redeliver(self, *, times: int = 1, shuffle: int | None = None) -> None:
        """Deliver every event again."""
        self.control("POST", "/_redeliver", {"times": times, "shuffle": shuffle})

    def settle(self, within_s: float = 15) -> None:
        """Wait until nothing is being delivered."""
        assert self.control("POST", "/_settle", {"within_s": within_s})["settled"], "still delivering"

    def accept(self, *keys: str) -> None:
        """These API keys open the account from now on, and no others; ``key`` is the last one."""
        self.standin.keys.clear()
        self.standin.keys.update(keys)
        self.key = keys[-1]

    def options(self, **changes: Any) -> None:
        """Change how the account behaves, see `sidecar.embedded.stripe.account.Options`."""
        self.control("POST", "/_options", changes)

    def control(self, method: str, path: str, body: Any = None, query: dict[str, str] | None = None) -> Any:
        return self.run(self._control(method, path, body, query))

    async def _control(self, method: str, path: str, body: Any, query: dict[str, str] | None) -> Any:
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, self.url + path, json=body, params=query) as answer,
        ):
            found = await answer.json()
            assert answer.status == 200, found
            return found
