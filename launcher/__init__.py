"""Pods as processes: namespaces, root, privileges, network identity, limits."""
