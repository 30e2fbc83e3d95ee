"""A stand-in for Stripe's API, for tests and `sidecar dev`; it is in no wheel.

Guarantees: what it accepts, the real API accepts as far as its documentation says; what it does not know, it refuses.
            It listens on loopback only and refuses live keys.
Gives up:   everything this program does not use, see docs/stripe-standin.md.
Source: Stripe API 2026-10-28.endive, https://docs.stripe.com/api
"""
