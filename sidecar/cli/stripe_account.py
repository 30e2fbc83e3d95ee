"""Which account at Stripe a command talks to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sidecar.billing.stripe_api import StripeApi
from sidecar.cli.target import Target
from sidecar.embedded.standin import EmbeddedStripe
from sidecar.errors import SettingsInvalid
from sidecar.state import State

# Of a stand-in that somebody started by hand.
DEV_KEY = "sk_test_standin0123456789"


def standin_of(state: State) -> EmbeddedStripe:
    """The stand-in of a `sidecar dev`, by its state directory."""
    return EmbeddedStripe(state.path / "stripe", state.clock_file)


def has_account(target: Target) -> bool:
    """Whether an installation bills through Stripe, or through the stand-in of a `sidecar dev`."""
    return bool(target.dev.stripe if target.dev is not None else target.settings.stripe_key)


@asynccontextmanager
async def account(target: Target) -> AsyncIterator[StripeApi]:
    """Open the account of an installation: of a `sidecar dev` its stand-in, else what the settings name."""
    if target.dev is not None and target.dev.stripe:
        # Whatever key the shell has, it is none of the stand-in's business.
        api = StripeApi.open(_key_of(target.state), target.dev.stripe)
    elif target.settings.stripe_key:
        api = StripeApi.open(target.settings.stripe_key, target.settings.stripe_url)
    else:
        raise SettingsInvalid("this command needs a Stripe account: set SIDECAR_STRIPE_KEY (or _FILE)")
    try:
        yield api
    finally:
        await api.close()


def _key_of(state: State) -> str:
    try:
        return standin_of(state).key
    except FileNotFoundError:
        return DEV_KEY
