"""What is done to inherited pages makes of them what is wanted, and touches no others."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt import inheritance
from ckpt.kinds.attachment import Attachment
from ckpt.kinds.memory import Layout, Mapping, Run, State
from ckpt.model import PAGE_SIZE

START, PAGES = 0x10000, 24
LAYOUT = Layout(*[0] * len(Layout.__struct_fields__))

contents = st.lists(st.none() | st.integers(0, 5), min_size=PAGES, max_size=PAGES)


def mapping(first=0, count=PAGES, **other):
    at = START + first * PAGE_SIZE
    end = at + count * PAGE_SIZE
    return Mapping(at, end, ["read", "write"], False, None, 0, ["accounted"], [], **other)


def space(*mappings, executable=1):
    return State(LAYOUT, b"", executable, list(mappings), [], b"")


class Archive:
    """A page sequence; the same content is the same unique page."""

    def __init__(self):
        self.sequence = []

    def store(self, first, pages):
        """Return the runs of *pages*, one content or None for each, from page *first* on."""
        runs = []
        for number, content in enumerate(pages):
            if content is None:
                continue
            at = START + (first + number) * PAGE_SIZE
            if runs and runs[-1].address + runs[-1].count * PAGE_SIZE == at:
                runs[-1] = msgspec.structs.replace(runs[-1], count=runs[-1].count + 1)
            else:
                runs.append(Run(at, 1, len(self.sequence)))
            self.sequence.append(content)
        return runs

    def unique(self, first, count):
        """In runs as short as can be, or as long."""
        pages = self.sequence[first : first + count]
        while pages:
            length = 1
            while length < len(pages) and pages[length] == pages[0] + length:
                length += 1
            yield pages[0], length
            pages = pages[length:]


@given(contents, contents, st.integers(0, PAGES - 1), st.data())
def test_changes(parents, childs, first, data):
    count = data.draw(st.integers(1, PAGES - first))
    childs = childs[:count]
    archive = Archive()
    held = mapping(runs=archive.store(0, parents))
    own = mapping(first, count, runs=archive.store(first, childs))
    pair = inheritance.Kept(held, own)
    changes = inheritance.changes(pair, archive.unique)
    pages = list(parents)
    for start, end in changes.dropped:
        for number in range((start - START) // PAGE_SIZE, (end - START) // PAGE_SIZE):
            assert pages[number] is not None
            pages[number] = None
    written = 0
    for run in changes.written:
        for number in range(run.count):
            at = (run.address - START) // PAGE_SIZE + number
            assert pages[at] != archive.sequence[run.first + number], "it was there"
            pages[at] = archive.sequence[run.first + number]
            written += 1
    assert pages == parents[:first] + childs + parents[first + count :]
    there = sum(content is not None for content in childs) - written
    assert inheritance.common(pair, archive.unique) == there


def test_a_part_is_kept():
    held, own = space(mapping()), space(mapping(3, 5))
    assert inheritance.kept(held, own) == [inheritance.Kept(held.mappings[0], own.mappings[0])]


def test_what_was_another_programs_is_not():
    assert inheritance.kept(space(mapping()), space(mapping(), executable=2)) == []


def test_what_reaches_beyond_is_not():
    held = space(mapping(0, 4), mapping(4, 4))
    assert inheritance.kept(held, space(mapping(2, 4))) == []
    assert inheritance.kept(held, space(mapping(8, 1))) == []


@pytest.mark.parametrize(
    "other",
    [
        {"shared": True},
        {"file": 3},
        {"flags": []},
        {"advice": ["hugepage"]},
        {"name": b"heap"},
        {"huge": 1 << 21},
        {"attachment": Attachment(1, 0, 0, True)},
    ],
    ids=str,
)
def test_what_is_of_another_kind_is_not(other):
    plain, changed = mapping(), msgspec.structs.replace(mapping(), **other)
    assert inheritance.kept(space(plain), space(changed)) == []
    assert inheritance.kept(space(changed), space(plain)) == []


def test_another_part_of_the_file_is_not():
    held = msgspec.structs.replace(mapping(), file=3)
    for offset, stays in ((2 * PAGE_SIZE, True), (PAGE_SIZE, False)):
        own = msgspec.structs.replace(mapping(2, 2), file=3, offset=offset)
        assert bool(inheritance.kept(space(held), space(own))) is stays


@pytest.mark.parametrize(
    "change",
    [
        {"advice": ["dontfork"]},
        {"advice": ["wipeonfork"]},
        {"huge": 1 << 21},
        {"flags": ["droppable"]},
    ],
)
def test_what_a_child_does_not_get_is_not(change):
    both = space(msgspec.structs.replace(mapping(), **change))
    assert inheritance.kept(both, both) == []
