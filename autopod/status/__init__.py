"""The status service: what this host and its pods need, and what is done about it."""
