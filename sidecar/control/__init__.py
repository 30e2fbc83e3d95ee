"""The billing API and what operators change through it."""
