"""Which ids of the host pods get; and what a pod with some is made of."""

from pathlib import Path

import pytest

from launcher import emulation
from launcher import plan as planning
from launcher.config import PodConfig
from launcher.places import Places
from launcher.plan import FileSystem, JoinUsers, NewNamespaces
from launcher.toml import ConfigError, decode
from launcher.users import COUNT, Pool, allot, base, ensure, forget, planned, subordinate

POOL = Pool(first=1 << 20, pods=3)
FIRST, SECOND, THIRD = (POOL.first + n * COUNT for n in range(3))


def test_the_lowest_free_ids_are_allotted():
    assert allot(POOL, [], []) == FIRST
    assert allot(POOL, [FIRST], []) == SECOND
    assert allot(POOL, [FIRST, THIRD], []) == SECOND
    assert allot(POOL, [FIRST, SECOND, THIRD], []) is None


def test_no_two_overlap_when_the_pool_has_moved():
    assert allot(POOL, [FIRST + 1], []) == THIRD
    assert allot(POOL, [FIRST - 1], []) == SECOND
    assert allot(POOL, [FIRST - COUNT], []) == FIRST
    assert allot(POOL, [FIRST + 1, THIRD + 1], []) is None


def test_ids_of_others_are_passed_over():
    reserved = subordinate("a:100000:65536\nb:1114111:3\n# no\nc:1048570:4\nd:x:1\n")
    assert reserved == [range(100000, 165536), range(1114111, 1114114), range(1048570, 1048574)]
    assert allot(POOL, [], reserved) == THIRD
    assert allot(POOL, [], [range(1 << 32)]) is None


def test_the_pool_is_far_from_everybody_s_and_ends_before_no_id():
    pool = Pool()
    assert pool.first % COUNT == 0
    assert pool.first > 1_879_048_191  # the last of systemd's containers
    assert pool.first + pool.pods * COUNT <= 0x7FFE0000  # where its foreign ids begin


@pytest.mark.parametrize(
    "text",
    ["first = 65535", "pods = 0", "pods = 65536", "pods = 1\nfirst = 4294901760", 'first = "x"'],
)
def test_a_pool_that_cannot_be_is_refused(text):
    with pytest.raises(ConfigError, match=text.split()[0]):
        decode(text.encode(), Path("users.toml"), Pool)
    assert decode(b"first = 4294901759\npods = 1", Path("users.toml"), Pool).pods == 1


def pod(name, *, namespace=True):
    return decode(
        f"[user]\nnamespace = {str(namespace).lower()}".encode(), Path("x"), PodConfig, name=name
    )


def test_ids_are_kept_until_they_are_given_up(tmp_path):
    places = Places(tmp_path)
    places.users_config().parent.mkdir(parents=True)
    places.users_config().write_text("first = 1048576\npods = 3\n")
    assert planned(places, pod("a")) == FIRST
    assert base(places, "a") is None
    assert ensure(places, pod("a")) == ensure(places, pod("a")) == FIRST
    assert planned(places, pod("b")) == ensure(places, pod("b")) == SECOND
    places.users_config().write_text("first = 4194304\n")
    assert ensure(places, pod("a")) == FIRST
    assert ensure(places, pod("a", namespace=False)) is None
    assert base(places, "a") is None
    assert ensure(places, pod("a")) == 4194304
    for name in ("a", "b", "c"):
        forget(places, name)
    assert not places.users().exists()


def test_a_pod_without_a_namespace_is_made_as_ever():
    plan = planning.plan(PodConfig(name="a"), Path("/root"), Path("/net"))
    steps = (*plan.outside, *plan.inside)
    assert not any(isinstance(step, JoinUsers) for step in steps)
    assert {step.owner for step in steps if isinstance(step, FileSystem)} == {0}
    assert NewNamespaces(("uts", "ipc", "mnt", "time", "pid")) in steps


def test_the_pod_s_root_comes_last():
    plan = planning.plan(PodConfig(name="a"), Path("/root"), Path("/net"), base=FIRST)
    assert plan.inside[-2:] == (JoinUsers(FIRST), NewNamespaces(("ipc",)))
    made = {step.target: step for step in plan.outside if isinstance(step, FileSystem)}
    assert {step.owner for step in made.values()} == {FIRST}
    assert dict(made["/dev/pts"].options)["gid"] == str(FIRST + 5)
    assert NewNamespaces(("uts", "mnt", "time", "pid")) in plan.outside


def test_a_tmpfs_of_the_pod_belongs_to_its_users():
    def options(text):
        request = emulation.of_mount(b"/a", b"tmpfs", 0, text, FIRST)
        assert not isinstance(request, int)
        return dict(request.options)

    assert options(b"")["uid"] == options(b"uid=0")["gid"] == str(FIRST)
    assert options(b"uid=33,gid=34")["uid"] == str(FIRST + 33)
    assert options(b"uid=33,gid=34")["gid"] == str(FIRST + 34)
    assert emulation.of_mount(b"/a", b"tmpfs", 0, b"gid=65536", FIRST) == emulation.EINVAL
    proc = emulation.of_mount(b"/a", b"proc", 0, b"", FIRST)
    assert not isinstance(proc, int)
    assert "uid" not in dict(proc.options)
