"""Usage on its way to Stripe: decided, sent once, settled, folded."""
