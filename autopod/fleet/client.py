"""The store of this host's fleet, as `/etc/autopod/autopod.toml` has it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TypeVar

import trio

from autopod.fleet.store import FleetError, Store
from autopod.status.policy import Fleet, Policy

_T = TypeVar("_T")


def configured(settings: Policy) -> Fleet:
    """Return what fleet the host belongs to.

    Raises:
        FleetError: to none.
    """
    if settings.fleet is None:
        raise FleetError("this host belongs to no fleet", "see [fleet] in docs/fleet.md")
    return settings.fleet


@asynccontextmanager
async def opened(fleet: Fleet) -> AsyncIterator[Store]:
    """Open the store.

    Raises:
        FleetError: its file, or certificates, key or password, cannot be used.
    """
    async with aclosing(await _open(fleet)) as store:
        yield store


def ask(fleet: Fleet, do: Callable[[Store], Awaitable[_T]]) -> _T:
    """Do something with the store, from a program that does not run trio.

    Raises:
        FleetError: as *do* does.
    """

    async def run() -> _T:
        async with opened(fleet) as store:
            return await do(store)

    return trio.run(run)


async def _open(fleet: Fleet) -> Store:
    if fleet.file:
        from autopod.fleet.sqlite import Sqlite

        return await Sqlite.open(Path(fleet.file))
    from autopod.fleet.etcd import Etcd
    from autopod.fleet.gateway import Access

    access = Access(
        endpoints=fleet.endpoints,
        ca=fleet.ca,
        certificate=fleet.certificate,
        key=fleet.key,
        user=fleet.user,
        password=_password(fleet.password_file),
        patience_s=fleet.patience_s,
    )
    return Etcd(access, fleet.root)


def _password(file: str | None) -> str | None:
    if file is None:
        return None
    try:
        return Path(file).read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise FleetError(f"{file}: {e}", "see fleet.password_file") from e
