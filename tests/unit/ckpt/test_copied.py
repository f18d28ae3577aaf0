"""What is stored already, compared with a page table that says it of each page."""

from hypothesis import given
from hypothesis import strategies as st

from ckpt.copied import Copied
from ckpt.model import PAGE_SIZE

PAGES = 24
spans = st.tuples(st.integers(0, PAGES - 1), st.integers(1, PAGES)).map(
    lambda pair: (pair[0], min(PAGES, pair[0] + pair[1]))
)
steps = st.lists(st.tuples(spans, st.one_of(st.none(), st.integers(0, 1 << 20))), max_size=20)


@given(steps, spans)
def test_it_says_what_was_noted_last(changes, question):
    copied, table = Copied(), [None] * PAGES
    for (start, end), first in changes:
        if first is None:
            copied.cut(start * PAGE_SIZE, end * PAGE_SIZE)
        else:
            copied.put(start * PAGE_SIZE, end * PAGE_SIZE, first)
        for page in range(start, end):
            table[page] = None if first is None else first + page - start
    start, end = question
    at, seen = start * PAGE_SIZE, []
    for begin, stop, first in copied.look(start * PAGE_SIZE, end * PAGE_SIZE):
        assert begin == at
        assert stop > begin
        count = (stop - begin) // PAGE_SIZE
        seen += [None] * count if first is None else range(first, first + count)
        at = stop
    assert at == end * PAGE_SIZE
    assert seen == table[start:end]


def test_nothing_is_stored_at_first():
    assert list(Copied().look(0, PAGE_SIZE)) == [(0, PAGE_SIZE, None)]
