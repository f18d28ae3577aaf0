"""Stores of both kinds."""

import contextlib
import itertools

import pytest

from autopod.fleet.etcd import Etcd
from autopod.fleet.sqlite import Sqlite
from tests.kernel.fleet import etcd

ROOTS = itertools.count()


@pytest.fixture(scope="package")
def cluster(tmp_path_factory):
    """Three members of etcd, which each worker has of its own, and ends: idle they work, too."""
    with etcd.running(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture(
    scope="package", params=["sqlite", pytest.param("etcd", marks=pytest.mark.needs("etcd"))]
)
def kind(request):
    """The cluster, or None for a file. Of the package: it is there before leaks are looked for."""
    return request.getfixturevalue("cluster") if request.param == "etcd" else None


@pytest.fixture
def opened(kind, tmp_path):
    """Opens the same new store as often as it is called, each time as another client."""
    root = f"/test{next(ROOTS)}"

    @contextlib.asynccontextmanager
    async def opened():
        store = Etcd(kind.access(), root) if kind else await Sqlite.open(tmp_path / "fleet.db")
        async with contextlib.aclosing(store):
            yield store

    return opened
