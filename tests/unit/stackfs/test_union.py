"""Which names show."""

from hypothesis import given
from hypothesis import strategies as st

from stackfs.layers.union import Kind, merge

F, D, W = Kind.FILE, Kind.DIRECTORY, Kind.WHITEOUT

layers = st.lists(
    st.dictionaries(st.sampled_from([b"a", b"b"]), st.sampled_from(Kind)), min_size=1, max_size=5
)


def shown(*listings):
    merged = merge(
        (index, {b"x": kind} if kind is not None else {}) for index, kind in enumerate(listings)
    )
    return merged[b"x"].layers if b"x" in merged else None


def test_rules():
    table = {
        (F, F): (0,),
        (F, D): (0,),
        (D, F): (0,),
        (D, D): (0, 1),
        (D, None, D): (0, 2),
        (D, W, D): (0,),
        (D, F, D): (0,),
        (W, F): None,
        (W, D): None,
        (None, W, F): None,
        (None, F, W): (1,),
        (None, None): None,
    }
    for listings, expected in table.items():
        assert shown(*listings) == expected, listings


@given(listings=layers)
def test_merging_says_what_looking_through_says(listings):
    merged = merge(enumerate(listings))
    for name in (b"a", b"b"):
        kinds = [(index, at[name]) for index, at in enumerate(listings) if name in at]
        if not kinds or kinds[0][1] is W:
            assert name not in merged
            continue
        top, kind = kinds[0]
        expected = [top]
        for index, below in kinds[1:]:
            if kind is not D or below is not D:
                break
            expected.append(index)
        assert merged[name].layers == tuple(expected)
        assert merged[name].directory is (kind is D)
