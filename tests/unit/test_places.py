import launcher.places
import stackfs.places

SHARED = ["barrier", "root", "state", "run"]


def test_both_packages_mean_the_same_places(tmp_path):
    ours, theirs = launcher.places.Places(tmp_path), stackfs.places.Places(tmp_path)

    assert [getattr(ours, n)("a") for n in SHARED] == [getattr(theirs, n)("a") for n in SHARED]
    assert ours.runs() == theirs.runs()
    assert launcher.places._POD == stackfs.places._POD
