"""Customers' subscriptions: changed here, kept as Stripe has them, and what they give their tenants."""
