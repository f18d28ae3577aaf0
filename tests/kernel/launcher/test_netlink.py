"""What the kernel tells of its network is whole, whatever comes and goes meanwhile."""

import os
import subprocess
import sys

import pytest

from launcher import abi, netlink

pytestmark = pytest.mark.needs("root", "namespaces")

MANY = 400
COMES_AND_GOES = """if True:
    import sys
    from launcher import netlink
    with netlink.connect() as ip:
        print(flush=True)
        while True:
            ip.link("add", ifname="guest", kind="bridge")
            ip.link("del", ifname="guest")
"""


@pytest.fixture
def network():
    """Let the test be where there are MANY interfaces, and one that comes and goes."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    abi.unshare(abi.CLONE_NEWNET)
    batch = "\n".join(f"link add stays{n} type bridge" for n in range(MANY))
    subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True)
    argv = [sys.executable, "-c", COMES_AND_GOES]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as other:
        other.stdout.read(1)
        yield
        other.kill()
    abi.setns(own, abi.CLONE_NEWNET)
    os.close(own)


def test_a_dump_is_asked_for_again_where_it_is_not_whole(network):
    """Until that has happened: the kernel marks a good part of such answers."""
    asked = 0
    with netlink.connect() as ip:

        def ask():
            nonlocal asked
            asked += 1
            return ip.get_links()

        whole = 0
        while asked == whole:
            found = [link.get_attr("IFLA_IFNAME") for link in netlink.dump(ask)]
            assert {f"stays{n}" for n in range(MANY)} <= set(found)
            assert len(found) == len(set(found))
            whole += 1
