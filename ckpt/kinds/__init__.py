"""One module per kind of kernel object: its model, its collector, its rebuilder."""
