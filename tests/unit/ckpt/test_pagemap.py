"""What the kernel says of pages, compared with what it said before."""

import array

import pytest

from ckpt import pagemap
from ckpt.model import PAGE_SIZE

PRESENT, SWAPPED, FILE, EXCLUSIVE, MARKED = (1 << bit for bit in (63, 62, 61, 56, 55))


def block(*entries):
    return array.array("Q", entries).tobytes()


@pytest.mark.parametrize(
    ("before", "now", "changed"),
    [
        (PRESENT | 7, PRESENT | 7, False),
        (PRESENT | 7, PRESENT | 7 | MARKED, True),
        (PRESENT | 7 | MARKED, PRESENT | 7 | MARKED, True),  # the mark could not be taken off
        (PRESENT | 7, PRESENT | 8, True),  # another page was moved there
        (PRESENT | 7, 0, True),
        (0, PRESENT | 7, True),
        (0, 0, False),
        (PRESENT | 7, SWAPPED | 7, True),
        (PRESENT | FILE | 7, PRESENT | 7, True),
        (PRESENT | EXCLUSIVE | 7, PRESENT | 7, False),  # a copy of the process has it, too
    ],
)
def test_a_page_is_what_it_was_if_it_is_where_it_was_without_a_mark(before, now, changed):
    assert pagemap.differences(block(0, before, 0), block(0, now, 0)) == [1] * changed


def test_what_was_not_looked_at_may_have_changed():
    now = block(PRESENT | 1, PRESENT | 2, 0)
    assert pagemap.differences(b"", now) == [0, 1]
    assert pagemap.differences(block(PRESENT | 1), now) == [1]


def test_what_is_behind_a_mapping_that_became_shorter_does_not_count():
    assert pagemap.differences(block(PRESENT | 1, PRESENT | 2), block(PRESENT | 1)) == []


def test_a_whole_block():
    before = [PRESENT | number for number in range(512)]
    now = [*before[:511], before[511] | MARKED]
    assert pagemap.differences(block(*before), block(*now)) == [511]


def test_pages_become_ranges():
    pages = [1, 2, 3, 9]
    assert pagemap.join(at * PAGE_SIZE for at in pages) == [
        (PAGE_SIZE, 4 * PAGE_SIZE),
        (9 * PAGE_SIZE, 10 * PAGE_SIZE),
    ]
