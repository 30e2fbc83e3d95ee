"""What Stripe sends: received, and worked off."""
