"""A restart says why not before it makes anything, and leaves nothing."""

import os

import msgspec
import pytest

from ckpt import restore, stack
from ckpt.archive.errors import FormatError, UnsupportedFeature, UntrustedKey
from ckpt.layers import InstallError
from ckpt.progress import Silent
from ckpt.seed import RestoreError
from tests.unit.ckpt import archives
from tests.unit.ckpt.archives import TRUSTED, Loose, part

pytestmark = pytest.mark.needs("root", "fuse", "mount_ns")


def restart(places, path, trusted=TRUSTED):
    restore.restore(
        places, "mail", path, trusted=trusted, lowers=None, replace=True, progress=Silent()
    )


def refused(places, path, kind, match, **named):
    trusted = named.get("trusted", TRUSTED)
    with pytest.raises(kind, match=match):
        restore.check(places, "mail", path, trusted=trusted)
    with pytest.raises(kind, match=match):
        restart(places, path, **named)
    assert not stack.is_mounted(places, "mail")
    left = {name for _, _, names in os.walk(places.prefix) for name in names}
    assert left <= {"stackfs.lock", "network.lock"}
    assert not places.state("mail").exists()
    assert not places.barrier("mail").exists()


@pytest.fixture
def loose(tmp_path):
    archives.make(tmp_path / "good.pod")
    return Loose(tmp_path / "good.pod")


def test_untrusted(places, tmp_path):
    archives.make(tmp_path / "x.pod", key=archives.STRANGER)
    refused(places, tmp_path / "x.pod", UntrustedKey, "not trusted here")


def test_damaged(places, tmp_path):
    archives.make(tmp_path / "x.pod")
    os.truncate(tmp_path / "x.pod", 5000)
    refused(places, tmp_path / "x.pod", FormatError, r"x\.pod: ")


def test_another_architecture(places, loose, tmp_path):
    loose.manifest["host"]["architecture"] = "riscv64"
    loose.write(tmp_path / "x.pod")
    refused(places, tmp_path / "x.pod", RestoreError, "taken on riscv64, this is ")


def test_a_cpu_with_more(places, loose, tmp_path):
    loose.manifest["host"]["cpu_features"] += ["avx9000", "quantum"]
    loose.write(tmp_path / "x.pod")
    refused(places, tmp_path / "x.pod", RestoreError, "this CPU lacks avx9000, quantum")


def test_an_unknown_kind(places, tmp_path):
    model = msgspec.structs.replace(archives.MODEL, parts=[part("telepathy", to="all")])
    archives.make(tmp_path / "x.pod", model=model)
    refused(places, tmp_path / "x.pod", RestoreError, "does not know its (names, )?telepathy")


def test_a_missing_lower_layer(places, tmp_path):
    model = msgspec.structs.replace(archives.MODEL, processes=[], files=[], objects=[], parts=[])
    archives.make(tmp_path / "x.pod", model=model, layers=[])
    refused(places, tmp_path / "x.pod", InstallError, "lower layer 1 of 1 is not here")


def test_a_feature_of_later_versions(places, loose, tmp_path):
    loose.manifest["requires"] = ["parent-pages"]
    loose.write(tmp_path / "x.pod")
    refused(places, tmp_path / "x.pod", UnsupportedFeature, "parent-pages")
