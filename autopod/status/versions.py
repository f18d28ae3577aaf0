"""Versions of Debian packages, put in order. Pure; dpkg itself is asked in a test."""

import re
from typing import Final

Key = tuple[int, list[tuple[list[int], int]], list[tuple[list[int], int]]]

_PARTS: Final = re.compile(r"([^0-9]*)([0-9]*)")
_END: Final[tuple[list[int], int]] = ([0], 0)


def key(version: str) -> Key:
    """Return what orders `[EPOCH:]UPSTREAM[-REVISION]` as dpkg does: by it one sorts and compares.

    Source: deb-version(7), "Sorting algorithm".
    """
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, dash, revision = rest.rpartition("-")
    number = int(epoch) if re.fullmatch("[0-9]{1,9}", epoch) else 0
    return number, _parts(upstream if dash else rest), _parts(revision if dash else "")


def _parts(text: str) -> list[tuple[list[int], int]]:
    """Return alternating what is no digit and numbers. The end sorts before all but `~`."""
    if not text.strip("0"):
        return [_END]
    return [
        *(
            ([*map(_weight, other), 0], int(number or "0"))
            for other, number in _PARTS.findall(text)
            if other or number
        ),
        _END,
    ]


def _weight(character: str) -> int:
    """Return where *character* sorts: letters before the rest."""
    if character == "~":
        return -1
    return ord(character) if character.isalpha() else ord(character) + 256
