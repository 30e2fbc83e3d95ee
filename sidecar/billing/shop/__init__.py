"""What a catalogue offers, and a Stripe account that offers it."""
