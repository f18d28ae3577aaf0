"""`make test-fleet`: three hosts are updated, and killed, and each pod lives on, once."""
