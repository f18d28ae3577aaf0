"""Sockets that share a port: what lets them share it at a restart."""

import pytest

from ckpt.kinds import inet, ports, sockets

LENDS_NOTHING: dict[int, set[str]] = {}


def bound(host, *options, listens=False, port=80, device="", uid=0):
    common = sockets.Common({o: [1] for o in options}, None, None, device, b"", uid, uid)
    return ports.Bound(inet.Address(host, port), common, listens=listens)


def lent(one, other):
    return ports.lent_options({1: one, 2: other})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (bound("127.0.0.1"), bound("127.0.0.2")),
        (bound("127.0.0.1"), bound("127.0.0.1", port=81)),
        (bound("127.0.0.1", device="lo"), bound("127.0.0.1", device="eth0")),
        (bound("0.0.0.0"), bound("::", "ipv6_v6only")),
        (bound("127.0.0.1"), bound("::1")),
        (bound("::ffff:127.0.0.1"), bound("127.0.0.2")),
    ],
)
def test_nothing_is_shared(one, other):
    assert lent(one, other) == lent(other, one) == LENDS_NOTHING


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (bound("::1", "reuseport", listens=True), bound("::1", "reuseport", listens=True)),
        (bound("::1", "reuseaddr"), bound("::1", "reuseaddr")),
    ],
)
def test_what_they_have_lets_them_share(one, other):
    assert lent(one, other) == LENDS_NOTHING


@pytest.mark.parametrize(
    ("one", "other", "option"),
    [
        (bound("::1", listens=True), bound("::1", listens=True), "reuseport"),
        (bound("::1", "reuseport"), bound("::1"), "reuseport"),
        (bound("::1", "reuseport", uid=1), bound("::1"), "reuseaddr"),
        (bound("::1", "reuseport", uid=1), bound("::1", "reuseport"), "reuseaddr"),
        (bound("::1", "reuseaddr", listens=True), bound("::1", "reuseaddr"), "reuseaddr"),
        (bound("::1"), bound("::1"), "reuseaddr"),
        (bound("::"), bound("0.0.0.0"), "reuseaddr"),
        (bound("::"), bound("127.0.0.1"), "reuseaddr"),
        (bound("::", device="lo"), bound("::1"), "reuseaddr"),
        (bound("::ffff:127.0.0.1"), bound("127.0.0.1"), "reuseaddr"),
        (bound("::ffff:0.0.0.0"), bound("127.0.0.1"), "reuseaddr"),
    ],
)
def test_what_they_are_lent(one, other, option):
    assert lent(one, other) == lent(other, one) == {1: {option}, 2: {option}}


def test_each_other_one_counts():
    """Two listeners, and one that is bound beside them."""
    listeners = [bound("::1", "reuseport", listens=True), bound("::1", listens=True)]
    found = ports.lent_options(dict(enumerate([*listeners, bound("::1")])))
    assert found == {0: {"reuseport"}, 1: {"reuseport", "reuseaddr"}, 2: {"reuseport", "reuseaddr"}}
