"""What configuration files have in common: tables, and errors that name file, key and value."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NoReturn, TypeVar, get_args

import msgspec

_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`")
_T = TypeVar("_T", bound="Table")


class ConfigError(Exception):
    """The configuration is wrong; the text names file, key and value."""


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A table of a file."""


def reject(key: str, value: object, reason: str) -> NoReturn:
    """Say, while a table is made, what is wrong with its *key*.

    Raises:
        ValueError: always; decode() says where it stands.
    """
    raise ValueError(f"{key} = {value!r}: {reason}")


def decode(text: bytes, path: Path, kind: type[_T], **more: object) -> _T:
    """Return what *text*, the content of *path*, says, as a *kind*.

    Args:
        text: TOML.
        path: for errors.
        kind: of the outermost table.
        more: keys that the file may not have, and their values.

    Raises:
        ConfigError: it cannot be understood.
    """
    import tomllib

    try:
        content = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: {e}") from e
    for key in more.keys() & content.keys():
        raise ConfigError(f"{path}: {key} = {content[key]!r}: the pod is named by its file's name")
    try:
        return msgspec.convert({**content, **more}, kind)
    except msgspec.ValidationError as e:
        raise ConfigError(f"{path}: {_explain(str(e), content, kind, *more)}") from e


def _explain(message: str, content: dict[str, object], kind: type[Table], *not_there: str) -> str:
    """Turn msgspec's "REASON - at `$.KEY`" into "KEY = VALUE: reason"."""
    reason, _, at = message.partition(" - at `$")
    key = at.rstrip("`").removeprefix(".")
    if " = " in reason:  # ours, from __post_init__: it names the last part of the key itself
        return f"{key}.{reason}" if key else reason
    unknown = _UNKNOWN.fullmatch(reason)
    if unknown:
        there = [one for one in _keys(kind, key) if key or one not in not_there]
        reason = f"there is no such key{', but ' if there else ''}{', '.join(there)}"
        key = f"{key}.{unknown[1]}".removeprefix(".")
    reason = re.sub(r"`(.*?)(?: \| null)?`", r"\1", reason[:1].lower() + reason[1:])
    value = _value(content, key)
    return (
        f"{key} = {value!r}: {reason}"
        if key and value is not None
        else f"{key or 'file'}: {reason}"
    )


def _keys(kind: type[Table], key: str) -> list[str]:
    """Return what the table at *key* ("limits", "act.window[0]") may have, or nothing."""
    kinds = [kind]
    for part in re.findall(r"[^.\[\]]+", key):
        if not part.isdecimal():
            there = {field.name: field.type for field in msgspec.structs.fields(kinds[0])}
            kinds = list(_tables(there[part]))
            if len(kinds) != 1:
                return []
    return [field.encode_name for field in msgspec.structs.fields(kinds[0])]


def _tables(kind: object) -> Iterator[type[Table]]:
    """Yield the tables in a type: `Service`, `Service | None`, `list[Receiver]`."""
    if isinstance(kind, type) and issubclass(kind, Table):
        yield kind
    for part in get_args(kind):
        yield from _tables(part)


def _value(content: object, key: str) -> object:
    """Return what stands at *key* ("limits.pids", "root.lower[0]")."""
    for part in re.findall(r"[^.\[\]]+", key):
        if isinstance(content, dict):
            content = content.get(part)
        elif isinstance(content, list) and part.isdecimal():
            content = content[int(part)]
    return content
