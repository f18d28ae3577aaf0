"""A pod's users in an archive, and on a host: by its own numbers, and by those of the host."""

import struct

import msgspec
import pytest

from ckpt import users
from ckpt.model import Clocks, Object, OpenFile, Part, Pod, Process, Thread

BASE = 1 << 20
NONE = 0xFFFFFFFF


def part(kind, **state):
    return Part(kind, msgspec.Raw(msgspec.msgpack.encode(state)))


def pod(files=(), objects=(), parts=(), credentials=None):
    threads = [Thread(2, [part("credentials", **credentials)])] if credentials else []
    return Pod(
        version=1,
        name="a",
        architecture="x86_64",
        clocks=Clocks(0, 0, 0),
        processes=[Process(2, 1, 2, 2, None, [], threads, [])],
        files=[OpenFile(n, [], found) for n, found in enumerate(files)],
        objects=[Object(n, found) for n, found in enumerate(objects)],
        parts=list(parts),
    )


def states(model):
    found = [file.part for file in model.files] + [o.part for o in model.objects] + model.parts
    found += [p for process in model.processes for t in process.threads for p in t.parts]
    return [msgspec.msgpack.decode(one.state) for one in found]


def host_s(n):
    return BASE + n


OWNED = {"size": 7, "attributes": {"mode": 0o644, "uid": host_s(33), "gid": host_s(34)}}


def test_without_a_namespace_nothing_changes():
    model = pod([part("regular", **OWNED)])
    assert users.of_pod(model, None) is model
    assert users.of_host(model, None) is model


def test_owners_are_found_wherever_they_are():
    model = pod(
        files=[part("unix", user=host_s(5), group=host_s(6),
                    common={"uid": host_s(7), "gid": host_s(0)},
                    queue=[{"credentials": [8, host_s(9), host_s(10)], "data": b"uid"}])],
        objects=[part("pipe", uid=host_s(0), gid=host_s(0), size=4096)],
        parts=[part("tmpfs", point=b"/x", entries=[OWNED, OWNED]),
               part("sysvshm", uid=host_s(1), gid=host_s(2), cuid=host_s(3), cgid=host_s(4))],
    )  # fmt: skip
    inside = users.of_pod(model, BASE)
    owned = {"size": 7, "attributes": {"mode": 0o644, "uid": 33, "gid": 34}}
    assert states(inside) == [
        {
            "user": 5,
            "group": 6,
            "common": {"uid": 7, "gid": 0},
            "queue": [{"credentials": [8, 9, 10], "data": b"uid"}],
        },
        {"uid": 0, "gid": 0, "size": 4096},
        {"point": b"/x", "entries": [owned, owned]},
        {"uid": 1, "gid": 2, "cuid": 3, "cgid": 4},
    ]
    assert states(users.of_host(inside, BASE)) == states(model)
    assert states(users.of_host(inside, 2 * BASE))[1]["uid"] == 2 * BASE


def test_what_is_no_id_stays():
    model = pod(
        files=[part("udp", multicast=[{"group": "224.0.0.1"}]), part("netlink", groups=[1, 2])],
        parts=[part("hostname", uid=7), part("unix", user=None, group=None)],
    )
    assert states(users.of_pod(model, BASE)) == states(model)


def test_credentials_are_the_pod_s_on_both_ways():
    them = {
        "users": [host_s(n) for n in (1, 2, 3, 4)],
        "groups": [host_s(0)] * 4,
        "supplementary": [host_s(5), host_s(100)],
        "permitted": ["kill"],
    }
    inside = users.of_pod(pod(credentials=them), BASE)
    (found,) = states(inside)
    assert found["users"] == [1, 2, 3, 4]
    assert (found["groups"], found["supplementary"]) == ([0] * 4, [5, 100])
    assert states(users.of_host(inside, BASE)) == [found]
    with pytest.raises(users.NoSuchUser):
        users.of_host(pod(credentials=them), BASE)


def test_who_is_none_of_the_pod_s_is_nobody():
    model = pod([part("unix", user=0, group=70000), part("pipe", uid=NONE, gid=BASE + 65536)])
    assert states(users.of_pod(model, BASE)) == [
        {"user": 65534, "group": 65534},
        {"uid": 65534, "gid": 65534},
    ]


def test_a_user_beyond_the_namespace_is_refused():
    with pytest.raises(users.NoSuchUser, match="70000 is beyond the 65536"):
        users.of_host(pod([part("pipe", uid=70000, gid=0)]), BASE)


def test_the_owner_of_a_tmpfs():
    mounted = part("mounts", type="tmpfs", options=f"size=4k,uid={host_s(33)},gid={host_s(0)}")
    inside = users.of_pod(pod(parts=[mounted, part("mounts", type="proc", options="")]), BASE)
    assert [s["options"] for s in states(inside)] == ["size=4k,uid=33,gid=0", ""]
    plain = pod(parts=[part("mounts", type="tmpfs", options="size=4k")])
    (outside,) = states(users.of_host(plain, BASE))
    assert sorted(outside["options"].split(",")) == [f"gid={BASE}", "size=4k", f"uid={BASE}"]


def acl(*entries):
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def test_acls_and_capabilities_of_files():
    name, capability = b"system.posix_acl_access", b"security.capability"
    sets = bytes(range(16))
    second = struct.pack("<I", 0x02000001) + sets
    third = struct.pack("<I", 0x03000001) + sets
    xattrs = {
        name: acl((1, 7, NONE), (2, 6, host_s(33)), (8, 4, host_s(12)), (16, 7, NONE)),
        capability: third + struct.pack("<I", BASE),
        b"user.note": acl((2, 6, 33)),
    }
    inside = users.of_pod(pod(parts=[part("tmpfs", xattrs=xattrs)]), BASE)
    assert states(inside)[0]["xattrs"] == {
        name: acl((1, 7, NONE), (2, 6, 33), (8, 4, 12), (16, 7, NONE)),
        capability: second,
        b"user.note": acl((2, 6, 33)),
    }
    assert states(users.of_host(inside, BASE))[0]["xattrs"] == xattrs
