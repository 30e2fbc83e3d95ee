"""What goes wrong in a run of what counts and limits, by what it strikes."""
