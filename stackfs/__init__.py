"""A stacking file system in user space: read-only layers below one writable layer."""
