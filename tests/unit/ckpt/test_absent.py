"""What has not arrived, as memory changes: in one thread, and in several at once."""

import pytest

from ckpt import absent
from ckpt.copied import Copied
from ckpt.userfault import Fork, Remap, Remove, Unmap

PAGE = 4096


def at(*numbers):
    """Return addresses, page by page."""
    return [number * PAGE for number in numbers]


def span(kind, first, last):
    return kind(*at(first, last))


def moved(source, to, count):
    return [Remap(*at(source, to, count)), span(Unmap, source, source + count)]


@pytest.fixture
def ten():
    """Pages 100 to 110 are to hold the archive's pages 0 to 10, pages 200 to 210 its 50 to 60."""
    pages = Copied()
    pages.put(*at(100, 110), 0)
    pages.put(*at(200, 210), 50)
    return pages


def held(pages):
    """Return the archive's page of each page that is absent."""
    return {
        start // PAGE + n: first + n
        for start, end, first in pages
        for n in range((end - start) // PAGE)
    }


def nothing(_address):
    return False


def there(*pages):
    """Return who knows that these pages are there, and no others that are asked for."""
    return set(at(*pages)).__contains__


def numbers(start, first, count):
    return {start + n: first + n for n in range(count)}


def test_what_is_dropped_or_unmapped_is_zeros(ten):
    left = absent.after(ten, [span(Remove, 100, 104)], nothing)
    left = absent.after(left, [span(Unmap, 108, 205)], nothing)

    assert held(left) == numbers(104, 4, 4) | numbers(205, 55, 5)


def test_what_is_moved_arrives_where_it_is(ten):
    assert held(absent.after(ten, moved(102, 300, 4), nothing)) == (
        numbers(100, 0, 2) | numbers(300, 2, 4) | numbers(106, 6, 4) | numbers(200, 50, 10)
    )


def test_what_lay_where_it_is_moved_to_is_gone(ten):
    changes = [span(Unmap, 200, 205), *moved(100, 200, 5)]

    assert held(absent.after(ten, changes, nothing)) == (
        numbers(105, 5, 5) | numbers(200, 0, 5) | numbers(205, 55, 5)
    )


@pytest.mark.parametrize("late", [False, True])
def test_freed_memory_that_another_thread_got(ten, late):
    """Whoever has unmapped it tells before or after the one that has moved something there."""
    freed, got = [span(Unmap, 100, 110)], moved(200, 100, 10)
    changes = got + freed if late else freed + got

    assert held(absent.after(ten, changes, nothing)) == numbers(100, 50, 10)


@pytest.mark.parametrize("late", [False, True])
def test_memory_moved_to_where_another_thread_has_moved_something_away(ten, late):
    away, got = moved(100, 300, 10), moved(200, 100, 10)
    changes = got + away if late else away + got

    assert held(absent.after(ten, changes, nothing)) == numbers(300, 0, 10) | numbers(100, 50, 10)


def test_what_a_mapping_has_grown_into_before_it_was_moved_is_zeros(ten):
    changes = [span(Unmap, 105, 110), *moved(100, 300, 10)]

    assert held(absent.after(ten, changes, nothing)) == numbers(300, 0, 5) | numbers(200, 50, 10)


GONE = moved(100, 300, 10)
"""By one thread; another one's mapping ends at page 100, and grows into what is free."""

GROWN = {  # what it does then, and what there is in the end
    "shrinks": ([span(Unmap, 104, 110)], there(103)),
    "drops": ([span(Remove, 104, 110)], there(104)),
    "drops_from_before": ([span(Remove, 90, 110)], there(100)),
    "unmaps": ([span(Unmap, 90, 110)], there()),
    "moves": (moved(90, 400, 20), there()),
    "moves_some": (moved(104, 400, 6), there(103)),
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("what", GROWN)
def test_what_another_mapping_has_grown_into_after_it_was_moved(ten, what, late):
    then, has = GROWN[what]
    changes = then + GONE if late else GONE + then

    assert held(absent.after(ten, changes, has)) == numbers(300, 0, 10) | numbers(200, 50, 10)


@pytest.mark.parametrize("late", [False, True])
def test_what_the_one_that_was_moved_has_grown_into(ten, late):
    """The first thread has freed its end, or moved it; a third one has grown into all of it."""
    for first in ([span(Unmap, 105, 110)], moved(105, 400, 5)):
        changes = GONE + first if late else first + GONE
        for has in (there(), there(104, 105)):
            left = held(absent.after(ten, changes, has))
            assert {page: n for page, n in left.items() if 300 <= page < 310} == numbers(300, 0, 5)


def test_what_is_there_was_moved_there(ten):
    changes = [*GONE, span(Unmap, 104, 110), *moved(200, 104, 2)]

    assert held(absent.after(ten, changes, there(103, 104))) == (
        numbers(300, 0, 10) | numbers(104, 50, 2) | numbers(202, 52, 8)
    )


def test_two_that_cannot_be_told_apart(ten):
    changes = [*moved(100, 300, 5), Remap(*at(100, 400, 10))]

    with pytest.raises(absent.Ambiguous):
        absent.after(ten, changes, nothing)


def test_a_child_forked_before_and_after(ten):
    changes = [span(Unmap, 100, 110), *moved(200, 100, 10)]
    before, after = {*at(*range(100, 110), *range(200, 210))}, {*at(*range(100, 110))}

    assert held(absent.of_child(ten, changes, before.__contains__)) == held(ten)
    assert held(absent.of_child(ten, changes, after.__contains__)) == numbers(100, 50, 10)


def test_a_child_forked_between(ten):
    changes = [span(Unmap, 100, 110), *moved(200, 100, 10)]
    between = {*at(*range(200, 210))}

    assert held(absent.of_child(ten, changes, between.__contains__)) == numbers(200, 50, 10)


def test_a_child_and_memory_that_stays_where_it_was_moved_from(ten):
    with pytest.raises(absent.Ambiguous):
        absent.of_child(ten, moved(200, 100, 10)[:1], lambda _at: True)


def test_what_clashes():
    assert absent.clash(span(Unmap, 1, 5), [Remap(*at(10, 4, 3))])
    assert absent.clash(Remap(*at(10, 4, 3)), [span(Unmap, 1, 5)])
    assert absent.clash(Fork(3), [span(Unmap, 1, 5)])
    assert not absent.clash(Fork(3), [span(Remove, 1, 5)])
    assert not absent.clash(span(Unmap, 1, 5), [span(Remove, 5, 6)])


def test_what_is_to_be_at_an_address(ten):
    assert absent.look(ten, 104 * PAGE, 16 * PAGE) == (4, 6 * PAGE)
    assert absent.look(ten, 104 * PAGE, 2 * PAGE) == (4, 2 * PAGE)
    assert absent.look(ten, 110 * PAGE, 2 * PAGE) is None
