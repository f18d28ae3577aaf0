"""What tests of hostile archives have in common: everything that is done with one, and sweeps.

`make fuzz` looks longer, and at random; the test run looks at the same things each time, so that
what it finds is what somebody has changed.
"""

import contextlib
import os
import resource
from pathlib import Path

from hypothesis import HealthCheck, settings

from ckpt import connections, diff, difftext, plan, show
from ckpt.archive.errors import ArchiveError
from ckpt.archive.read import open_archive
from ckpt.progress import Silent
from launcher import config

TIMES = int(os.environ.get("FUZZ", "1"))
"""How many times as much as in the test run."""

REFUSALS = (ArchiveError, config.ConfigError, plan.Unbuildable)
"""What may be said of an archive. Anything else is a mistake of ours."""

_ROOM = 1 << 30


def fuzz(examples):
    """Settings for a test that is to see *examples* examples."""
    return settings(
        max_examples=examples * TIMES,
        deadline=None,
        derandomize=TIMES == 1,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


@contextlib.contextmanager
def bounded():
    """Within the block, allocating a GiB fails, as MemoryError, which nothing expects."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + _ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def use(path, trusted, identities=()):
    """Do all that is done with an archive before there is a process; return what refuses it."""
    try:
        with open_archive(path, trusted, identities) as archive:
            if archive.is_locked:
                archive.verify(Silent())
                return None
            model = archive.model()
            show.as_json(archive)
            show.as_text(archive)
            found = diff.compare(archive, archive)
            difftext.as_text(found, archive, archive)
            config.parse(archive.config(), "mail", path)
            connections.addresses(connections.apply(model, "close"))
            plan.plan(model.processes)
            archive.pages.read(0, min(archive.pages.count, 1024))
            archive.verify(Silent())
    except REFUSALS as e:
        return e
    return None


def sweep(data, path, trusted, *, step, identities=()):
    """Change each *step*-th byte, and cut at each *step*-th; return what was not refused."""
    accepted = []
    for at in range(0, len(data), step):
        for what, wrong in (
            ("bit", data[:at] + bytes([data[at] ^ 1 << at // step % 8]) + data[at + 1 :]),
            ("byte", data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]),
            ("cut", data[:at]),
        ):
            path.write_bytes(wrong)
            if use(path, trusted, identities) is None:
                accepted.append((what, at))
    return accepted
