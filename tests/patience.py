"""How long tests wait for what must come."""

import os

DEADLINE_S = int(os.environ.get("TEST_DEADLINE_S", "60"))
"""Seconds. More where the processor is emulated: `make test-kernels` sets it."""
