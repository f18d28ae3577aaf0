"""Hosts that work together: who is there, who has which pod, who may reboot now."""
