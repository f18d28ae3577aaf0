"""Stores of both kinds."""

import contextlib
import itertools

import pytest

from autopod.fleet.etcd import Etcd
from autopod.fleet.sqlite import Sqlite
from tests.kernel.fleet import etcd

ROOTS = itertools.count()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """Three members of etcd, which each worker of the tests has of its own."""
    with etcd.running(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture(
    scope="session", params=["sqlite", pytest.param("etcd", marks=pytest.mark.needs("etcd"))]
)
def kind(request):
    """The cluster, or None for a file. Of the session: it is there before leaks are looked for."""
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
