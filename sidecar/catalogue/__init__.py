"""Metrics, plans, routes and identity rules: read, checked as a whole, resolved for a tenant."""
