import pytest

from tests.unit.ckpt import archives
from tests.unit.ckpt.archives import Loose


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """An archive of few bytes, which nobody changes."""
    path = tmp_path_factory.mktemp("good") / "mail.pod"
    with pytest.MonkeyPatch.context() as patch:
        archives.make_canonical(path, patch)
    archives.read_all(path)
    return path


@pytest.fixture
def loose(good):
    return Loose(good)
