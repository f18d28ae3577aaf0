"""Which level an update needs: the rule table, as data. Pure, but for the reading of two files."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, Literal

import msgspec

from launcher import toml
from launcher.places import Places
from launcher.toml import Table, reject

Level = Literal["none", "restart", "reboot"]

LEVELS: Final[tuple[Level, ...]] = ("none", "restart", "reboot")
"""In rising order."""

_SHIPPED: Final = Path(__file__).with_name("rules.toml")


class Rule(Table, frozen=True):
    """What updates of some packages need.

    Attributes:
        packages: globs over package names, as fnmatch(3) has them.
        level: what they need.
        reason: why, for people.
    """

    packages: list[str]
    level: Level
    reason: str

    def __post_init__(self) -> None:
        if not self.packages:
            reject("packages", self.packages, "a rule without packages fits none")


class Rules(Table, frozen=True):
    """A file of rules, the first that fits counts."""

    rule: list[Rule] = msgspec.field(default_factory=list)


def load(places: Places) -> list[Rule]:
    """Return the administrator's rules and those that are shipped, in the order of asking.

    Raises:
        ConfigError: a file cannot be understood.
    """
    own = places.keys().parent / "rules.toml"
    rules = toml.decode(_SHIPPED.read_bytes(), _SHIPPED, Rules).rule
    if own.exists():
        return [*toml.decode(own.read_bytes(), own, Rules).rule, *rules]
    return rules


def judge(rules: Sequence[Rule], package: str) -> tuple[Level, str]:
    """Return what an update of *package* needs, and why. Pure."""
    for rule in rules:
        if any(fnmatchcase(package, glob) for glob in rule.packages):
            return rule.level, rule.reason
    return "restart", "no rule fits; a program of it may be running"


def highest(levels: Iterable[Level]) -> Level:
    """Return the highest of *levels*; none of nothing. Pure."""
    return max(levels, key=LEVELS.index, default="none")
