"""Ledger and Stripe compared."""
