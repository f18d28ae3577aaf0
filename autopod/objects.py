"""Files in an object store: S3 and its like, or a directory. A thin layer over obstore.

An object is there whole or not at all: S3's multipart uploads, and renaming in a directory, see to
that. What a store says is nobody's word: callers check what they get.

obstore has threads of its own. A process that forks pods or joins their namespaces never opens a
store, but has another one do it.
"""

import configparser
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from ckpt.progress import Progress

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES: Final = ("s3", "gs", "az", "file")
_PIECE: Final = 8 << 20
_PARTS: Final = 9000  # S3 takes 10000
_AT_ONCE: Final = 4
_OBJECTS: Final = 100_000
_CREDENTIALS: Final = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
}
_REGION: Final = ("AWS_REGION", "AWS_DEFAULT_REGION")
_ENDPOINT: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_ANSWER: Final = re.compile(r"<Code>([^<]*)</Code>\s*<Message>([^<]*)</Message>")
_WORDS: Final = 300


class StoreFailed(Exception):  # noqa: N818 (what is the case)
    """An object store has not done what it was asked; the text says which, and why."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Objects:
    """What lies below a URL. Calls block; each ends, whatever the network does."""

    def __init__(self, url: str, endpoint: str | None = None) -> None:
        """Be the store of *url*; nothing is asked of it yet.

        Args:
            url: as check_url() takes it.
            endpoint: of a service that speaks S3; None: as the environment says, else Amazon's.

        Raises:
            StoreFailed: there can be no such store.
        """
        from obstore.exceptions import BaseError
        from obstore.store import from_url

        self.url = url.rstrip("/")
        scheme = url.partition(":")[0]
        try:
            if scheme == "file":
                self._store: ObjectStore = from_url(url, mkdir=True)
            else:
                self._store = from_url(url, **_options(scheme, endpoint))
        except (BaseError, OSError, ValueError) as e:
            raise self._failed(e) from e

    def names(self, under: str) -> dict[str, int]:
        """Return the objects right below *under*, and their sizes in bytes.

        Raises:
            StoreFailed: it cannot be told.
        """
        import obstore
        from obstore.exceptions import BaseError

        found: dict[str, int] = {}
        try:
            for some in obstore.list(self._store, under):
                for one in some:
                    name = one["path"].removeprefix(f"{under}/")
                    if "/" not in name:
                        found[name] = one["size"]
                if len(found) > _OBJECTS:
                    raise StoreFailed(f"{self.url}/{under}: more than {_OBJECTS} objects")
        except (BaseError, OSError) as e:
            raise self._failed(e) from e
        return found

    def put(self, name: str, file: Path, progress: Progress) -> None:
        """Make *file* the object *name*, which is there when this returns, and not before.

        Raises:
            StoreFailed: it is not there; or it was replaced, or is no longer what it was.
        """
        import obstore
        from obstore.exceptions import BaseError

        size = file.stat().st_size
        piece = max(_PIECE, -(-size // _PARTS))
        try:
            with _ends_in_order(), progress.step("upload", size):
                pieces = _pieces(file, progress)
                obstore.put(self._store, name, pieces, chunk_size=piece, max_concurrency=_AT_ONCE)
            there = obstore.head(self._store, name)["size"]
        except (BaseError, OSError) as e:
            raise self._failed(e) from e
        if there != size:
            raise StoreFailed(f"{self.url}/{name}: it has {there} bytes, {size} were sent")

    def mark(self, name: str) -> None:
        """Make *name* an object that has no content.

        Raises:
            StoreFailed: it may be there, or not.
        """
        import obstore
        from obstore.exceptions import BaseError

        try:
            obstore.put(self._store, name, b"")
        except (BaseError, OSError) as e:
            raise self._failed(e) from e

    def get(self, name: str, size: int, fd: int, progress: Progress) -> None:
        """Write the object *name* to *fd*.

        Args:
            name: of the object.
            size: its bytes; one that has another size is not taken.
            fd: an empty file.
            progress: is told.

        Raises:
            StoreFailed: it was not got, or not to its end.
            OSError: the file cannot be written.
        """
        with progress.step("download", size):
            for start in range(0, size, _PIECE):
                data = self._piece(name, start, min(_PIECE, size - start), size)
                os.pwrite(fd, data, start)
                progress.advance(len(data))

    def _piece(self, name: str, start: int, length: int, size: int) -> bytes:
        """Return a part of an object: a request each, so that each ends in its time."""
        import obstore
        from obstore.exceptions import BaseError

        try:
            got = obstore.get(self._store, name, options={"range": (start, start + length)})
            there, data = got.meta["size"], bytes(got.bytes())
        except (BaseError, OSError) as e:
            raise self._failed(e) from e
        if there != size or len(data) != length:
            raise StoreFailed(f"{self.url}/{name}: it does not have the {size} bytes it had")
        return data

    def delete(self, name: str) -> None:
        """Delete an object, if it is there.

        Raises:
            StoreFailed: it may be there, or not.
        """
        import obstore
        from obstore.exceptions import BaseError, NotFoundError

        try:
            obstore.delete(self._store, name)
        except (NotFoundError, FileNotFoundError):  # a directory tells that, S3 does not
            return
        except (BaseError, OSError) as e:
            raise self._failed(e) from e

    def _failed(self, error: Exception) -> StoreFailed:
        return StoreFailed(f"{self.url}: {words(str(error))}")


def words(text: str) -> str:
    """Return what obstore says of an error, for a person: a line that is not too long. Pure."""
    text = text.partition("\n\nDebug source")[0]
    said = _ANSWER.search(text)
    line = f"{said[1]}: {said[2]}" if said else " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in line)[:_WORDS]


def check_url(url: str) -> str:
    """Return *url*, without a slash at its end, if it can be that of a store. Pure.

    Raises:
        ValueError: it cannot; the text says why.
    """
    found = urlsplit(url)
    if found.scheme not in SCHEMES:
        raise ValueError(f"{url!r}: use s3://BUCKET/PREFIX, gs://…, az://… or file:///DIRECTORY")
    if "@" in found.netloc or found.query or found.fragment:
        raise ValueError("a URL of a store has no user, password, query or fragment")
    is_directory = not found.netloc and found.path.startswith("/")
    if not (is_directory if found.scheme == "file" else found.netloc):
        raise ValueError(f"{url!r}: use s3://BUCKET/PREFIX, file:///DIRECTORY")
    return url.rstrip("/")


def _options(scheme: str, endpoint: str | None) -> dict[str, Any]:
    """Return what obstore is to know: of the store, and how long is waited for one request."""
    config = _s3_config(endpoint) if scheme == "s3" else {}
    backoff = {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=5),
        "base": 2,
    }
    return {
        "config": config,
        "client_options": {
            "timeout": "60s",
            "connect_timeout": "5s",
            "allow_http": config.get("endpoint", "").startswith("http://"),
        },
        "retry_config": {
            "max_retries": 3,
            "retry_timeout": timedelta(seconds=60),
            "backoff": backoff,
        },
    }


def _s3_config(endpoint: str | None) -> dict[str, str]:
    """Return what obstore does not find in the environment by itself.

    That is what stands in Amazon's files, of the profile $AWS_PROFILE.
    Source: AWS SDKs and Tools Reference Guide, "Shared config and credentials files".
    """
    profile, found = os.environ.get("AWS_PROFILE", "default"), dict[str, str]()
    credentials = _section("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", profile)
    named = profile if profile == "default" else f"profile {profile}"
    config = _section("AWS_CONFIG_FILE", "~/.aws/config", named)
    if "AWS_ACCESS_KEY_ID" not in os.environ:
        for key, ours in _CREDENTIALS.items():
            if value := credentials.get(key, config.get(key)):
                found[ours] = value
    for ours, key, variables in (
        ("region", "region", _REGION),
        ("endpoint", "endpoint_url", _ENDPOINT),
    ):
        if value := next(filter(None, map(os.environ.get, variables)), config.get(key)):
            found[ours] = value
    if endpoint is not None:
        found["endpoint"] = endpoint
    return found


def _section(variable: str, default: str, name: str) -> dict[str, str]:
    """Return a section of a file that the environment may name; empty where there is none.

    Raises:
        StoreFailed: the file cannot be understood.
    """
    path = os.environ.get(variable) or os.path.expanduser(default)
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read(path, "utf-8")
    except (configparser.Error, ValueError):  # whose text may have what stands there
        raise StoreFailed(f"{path}: it cannot be understood") from None
    return dict(parser[name]) if parser.has_section(name) else {}


@contextmanager
def _ends_in_order() -> Iterator[None]:
    """Within the block, SIGTERM is an exception as SIGINT is: obstore takes back what it has sent.

    That is parts of an object, which no listing shows.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _pieces(file: Path, progress: Progress) -> Iterator[bytes]:
    with file.open("rb") as content:
        while piece := content.read(1 << 20):
            yield piece
            progress.advance(len(piece))
