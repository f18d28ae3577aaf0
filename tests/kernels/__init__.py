"""`make test-kernels`: pods go from one kernel to another, between guests of a lab."""
