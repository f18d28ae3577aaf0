"""The layers that a stack is made of, and how they are written on disk."""
