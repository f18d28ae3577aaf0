"""Pods move between machines with different kernels, while their clients go on."""
