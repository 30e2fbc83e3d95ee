"""Usage in the ledger becomes money: Stripe meters, outbox, subscriptions, webhooks, reconciliation."""
