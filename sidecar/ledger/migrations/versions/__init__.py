"""One revision a file, each running the .sql file of its name."""
