"""Checkpoints pods into signed archives, and restarts them."""
