"""What was allowed, counted durably on this machine: the journal and its windows."""
