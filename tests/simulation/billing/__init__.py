"""What bills, simulated beside what counts and limits."""
