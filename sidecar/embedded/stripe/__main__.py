"""`python -m sidecar.embedded.stripe`: the stand-in as a program of its own.

Prints one JSON line once it listens, and ends at SIGINT or SIGTERM with its state saved.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

import msgspec
import uvloop

from sidecar.embedded.stripe.server import StripeStandIn

DEFAULT_KEY = "sk_test_standin0123456789"
KEY_VARIABLE = "STRIPE_STANDIN_KEY"
SECRETS_VARIABLE = "STRIPE_STANDIN_WEBHOOK_SECRETS"


def main() -> None:
    """Read the command line and serve. Secrets may come by the environment, since arguments can be read by others."""
    parser = argparse.ArgumentParser(prog="python -m sidecar.embedded.stripe", description="A stand-in for Stripe.")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--clock-file", type=Path, help="offset of the clock, as `sidecar dev` has one")
    parser.add_argument("--state", type=Path, help="file that keeps everything between two runs")
    parser.add_argument("--key", default=os.environ.get(KEY_VARIABLE, DEFAULT_KEY), help=f"or {KEY_VARIABLE}")
    parser.add_argument("--webhook", help="endpoint on loopback that every event is delivered to")
    parser.add_argument("--webhook-secret", action="append", default=[], help=f"or {SECRETS_VARIABLE}, with commas")
    given = parser.parse_args()
    secrets = given.webhook_secret or list(filter(None, os.environ.get(SECRETS_VARIABLE, "").split(",")))
    if given.webhook and not secrets:
        parser.error("--webhook needs --webhook-secret")
    try:
        standin = StripeStandIn(given.key, port=given.port, clock_file=given.clock_file, state_file=given.state)
    except ValueError as error:
        parser.error(str(error))
    if given.webhook:
        standin.deliver_to(given.webhook, secrets)
    uvloop.run(_serve(standin))


async def _serve(standin: StripeStandIn) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await standin.start()
    sys.stdout.write(msgspec.json.encode({"url": standin.url}).decode() + "\n")
    sys.stdout.flush()
    await stop.wait()
    await standin.stop()


if __name__ == "__main__":
    main()
