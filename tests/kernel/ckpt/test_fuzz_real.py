"""The archive of a real pod, changed and cut at many places: `make fuzz`."""

import pytest

from ckpt.archive import keys
from tests.kernel.ckpt import harness
from tests.unit.ckpt.fuzzing import TIMES, bounded, sweep, use

pytestmark = pytest.mark.needs("root", "fuse", "namespaces")


def test_a_real_archive(places, debian_root, tmp_path):
    with harness.Pod(places, debian_root) as pod:
        pod.start("/bin/sleep", "1000")
        pod.dump()
        trusted = keys.load_trusted(places.trust())
        data = pod.archive.read_bytes()
        assert use(pod.archive, trusted) is None
        with bounded():
            step = max(1, len(data) // (100 * TIMES))
            assert sweep(data, tmp_path / "x.pod", trusted, step=step) == []
