"""The page of a host: what it and its pods do, and buttons for what an administrator does."""
