"""What configuration files have in common: tables, and errors that name file, key and value."""

import datetime
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NoReturn, TypeVar, get_args, get_origin

import msgspec

_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`")
_KINDS: Final[dict[type, str]] = {list: "array", dict: "object"}
"""What msgspec calls a type, where that is not its own name."""
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
    raise ValueError(f"{key} = {_shown(value)}: {reason}")


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
    except (ValueError, RecursionError) as e:  # no TOML, no UTF-8; too many digits, or brackets
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
    key, value = _place(at.rstrip("`").removeprefix("."), reason, content)
    if " = " in reason:  # ours, from __post_init__: it names the last part of the key itself
        return f"{key}.{reason}" if key else reason
    unknown = _UNKNOWN.fullmatch(reason)
    if unknown:
        there = [one for one in _keys(kind, key) if key or one not in not_there]
        reason = f"there is no such key{', but ' if there else ''}{', '.join(there)}"
        key = f"{key}.{unknown[1]}".removeprefix(".")
        value = _value(content, key)
    elif reason.startswith("Invalid enum value") or reason == f"Invalid value {value!r}":
        reason = f"must be {' or '.join(map(str, _choices(kind, key)))}"
    reason = re.sub(r"`(.*?)(?: \| null)?`", r"\1", reason[:1].lower() + reason[1:])
    reason = reason.replace("object", "table")
    if not key or value is None or isinstance(value, dict):
        return f"{key or 'file'}: {reason}"
    return f"{key} = {_shown(value)}: {reason}"


def _place(key: str, reason: str, content: object) -> tuple[str, object]:
    """Return *key*, and what stands there; "[...]" in it, for any key of a table, is made one."""
    table, dots, rest = key.partition("[...]")
    value = _value(content, table)
    if dots and isinstance(value, dict):
        for name, one in value.items():
            found = _value(one, rest)
            if reason.endswith(f"got `{_KINDS.get(type(found), type(found).__name__)}`"):
                return f"{table}.{name}{rest}", found
    return key, value


def _shown(value: object) -> str:
    """Return *value* about as it stands in the file."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, datetime.date | datetime.time) else repr(value)


def _keys(kind: type[Table], key: str) -> list[str]:
    """Return what the table at *key* ("limits", "act.window[0]") may have, or nothing."""
    return [field.encode_name for field in _fields(kind, _parts(key))]


def _choices(kind: type[Table], key: str) -> list[object]:
    """Return the values of which *key* ("network.mode") has one."""
    *tables, name = _parts(key)
    tags = _tags(kind, tables)
    if name in tags:
        return tags[name]
    return [
        choice
        for field in _fields(kind, tables)
        if field.encode_name == name
        for choice in _literals(field.type)
    ]


def _tags(kind: type[Table], tables: list[str]) -> dict[str, list[object]]:
    """Return key and values by which tables of several kinds, at *tables*, are told apart."""
    *above, name = tables or [""]
    of = next((one.type for one in _fields(kind, above) if one.encode_name == name), None)
    found: dict[str, list[object]] = {}
    for table in _tables(of):
        if table.__struct_config__.tag_field:
            choice = f'"{table.__struct_config__.tag}"'
            found.setdefault(table.__struct_config__.tag_field, []).append(choice)
    return found


def _fields(kind: type[Table], tables: list[str]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """Return the fields of the table that is reached by the names of *tables*, or nothing."""
    kinds = [kind]
    for name in tables:
        there = {field.encode_name: field.type for field in msgspec.structs.fields(kinds[0])}
        kinds = list(_tables(there[name]))
        if len(kinds) != 1:
            return ()
    return msgspec.structs.fields(kinds[0])


def _parts(key: str) -> list[str]:
    """Return the names in *key*, without numbers of a list's elements."""
    return [part for part in re.findall(r"[^.\[\]]+", key) if not part.isdecimal()]


def _tables(kind: object) -> Iterator[type[Table]]:
    """Yield the tables in a type: `Service`, `Service | None`, `list[Receiver]`."""
    if isinstance(kind, type) and issubclass(kind, Table):
        yield kind
    for part in get_args(kind):
        yield from _tables(part)


def _literals(kind: object) -> Iterator[object]:
    """Yield the values in a type: `Literal[…]`, `Literal[…] | None`."""
    for part in get_args(kind):
        if get_origin(kind) is Literal:
            yield f'"{part}"' if isinstance(part, str) else part
        else:
            yield from _literals(part)


def _value(content: object, key: str) -> object:
    """Return what stands at *key* ("limits.pids", "root.lower[0]")."""
    for part in re.findall(r"[^.\[\]]+", key):
        if isinstance(content, dict):
            content = content.get(part)
        elif isinstance(content, list) and part.isdecimal():
            content = content[int(part)]
    return content
