from pathlib import Path

import pytest

from launcher import capabilities, config, netconfig, policy
from launcher.config import ConfigError, PodConfig
from launcher.places import Places

FILE = Path("/etc/autopod/pods/mail.toml")

FULL = """\
hostname = "mail.example"

[root]
lower = [
    "/srv/exim",
    "/srv/debian",
]

[network]
address = "10.98.0.10/24"
address6 = "fd98::10/64"
gateway = "10.98.0.254"
mac = "02:50:4f:44:00:0a"
nat = true
publish = [
    "8080:80",
    "192.0.2.1:53:53/udp",
]

[privileges]
capabilities = [
    "chown",
    "setuid",
]
no_new_privileges = false
seccomp = "none"

[limits]
memory = "512M"
pids = 100
cpus = 1.5

[environment]
LANG = "C.UTF-8"

[arguments]
"/usr/sbin/exim4" = [
    "-bd",
    "-q30m",
]
"""


def test_defaults():
    empty = config.parse(b"", "mail", FILE)

    assert empty == PodConfig(name="mail")
    assert empty.host_name == "mail"
    assert empty.privileges.no_new_privileges
    assert "sys_admin" not in empty.privileges.capabilities
    assert config.dump(empty) == ""


def test_there_and_back():
    full = config.parse(FULL.encode(), "mail", FILE)

    assert config.dump(full) == FULL
    assert full.limits.memory_bytes == 512 << 20
    assert full.host_name == "mail.example"


def test_file_there_and_back(tmp_path):
    places = Places(tmp_path)
    full = config.parse(FULL.encode(), "mail", FILE)

    config.save(places, full)

    assert config.load(places, "mail") == full
    assert [path.name for path in places.configs().iterdir()] == ["mail.toml"]
    assert config.load(places, "other") == PodConfig(name="other")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("x = 1", "x = 1: there is no such key"),
        (
            "[limits]\npid = 1",
            "limits.pid = 1: there is no such key, but memory, pids, cpus, io_read, io_write",
        ),
        ("service.x = 1", "service.x = 1: there is no such key, but program, restart, stop_t"),
        ("[limits]\npids = 'a'", "limits.pids = 'a': expected int, got str"),
        ("[limits]\npids = 1", "limits.pids = 1: must be 2 to 4194304: the pod's init is one"),
        ("[limits]\nmemory = '3X'", "limits.memory = '3X': must be like 512M"),
        ("[limits]\nmemory = 4096", "limits.memory = 4096: is less than 1M"),
        ("[limits]\ncpus = 0", "limits.cpus = 0.0: must be 0.01 to 4096"),
        ("hostname = 3", "hostname = 3: expected str, got int"),
        ("hostname = 'a b'", "hostname = 'a b': is no host name"),
        ("name = 'x'", "name = 'x': the pod is named by its file's name"),
        ("[root]\nlower = [1]", "root.lower[0] = 1: expected str, got int"),
        ("[root]\nlower = ['a']", "root.lower = 'a': must be an absolute path"),
        (
            "[network]\nmode = 'x'",
            """network.mode = 'x': must be "bridge" or "macvlan" or "none\"""",
        ),
        (
            "[network]\naddress = '10.98.0.300/24'",
            "network.address = '10.98.0.300/24': must be like",
        ),
        ("[network]\naddress = '10.98.0.10'", "network.address = '10.98.0.10': needs a prefix"),
        (
            "[network]\naddress = '10.98.0.1/24'",
            "network.address = '10.98.0.1/24': is the gateway's",
        ),
        (
            "[network]\naddress = '10.98.0.0/24'",
            "network.address = '10.98.0.0/24': is the address of",
        ),
        (
            "[network]\naddress = '10.98.0.9/24'\ngateway = '10.99.0.1'",
            "network.gateway = '10.99.0.1': is",
        ),
        ("[network]\naddress = '10.98.0.9/24'\ngateway = 'x'", "network.gateway = 'x': must be"),
        ("[network]\ngateway = '10.98.0.1'", "network.gateway = '10.98.0.1': needs an address"),
        (
            "[network]\nmac = '01:00:00:00:00:01'",
            "network.mac = '01:00:00:00:00:01': is a multicast",
        ),
        ("[network]\nmac = 'x'", "network.mac = 'x': must be six pairs"),
        ("[network]\naddress6 = '10.98.0.9/24'", "network.address6 = '10.98.0.9/24': must be like"),
        ("[network]\naddress6 = 'fd98::1/64'", "network.address6 = 'fd98::1/64': is the gateway's"),
        (
            "[network]\nmode = 'macvlan'\nparent = 'eth0'",
            'network.address = None: is needed with mode "macvlan"',
        ),
        (
            "[network]\nmode = 'macvlan'\naddress = '10.98.0.9/24'",
            "network.parent = None: must be the name of the host's interface",
        ),
        (
            "[network]\nmode = 'macvlan'\nnat = true",
            'network.nat = true: is for mode "bridge", not "macvlan"',
        ),
        ("[network]\nparent = 'eth0'", "network.parent = 'eth0': is for mode \"macvlan\""),
        (
            "[network]\nmode = 'none'\naddress = '10.98.0.9/24'",
            "network.address = '10.98.0.9/24': mode \"none\" has none",
        ),
        ("[network]\npublish = ['80']", "network.publish = '80': must be like 8080:80"),
        ("[network]\npublish = ['0:80']", "network.publish = '0:80': must be like 8080:80"),
        ("[network]\npublish = ['1.2.3:80:80']", "network.publish = '1.2.3:80:80': Expected 4"),
        (
            "[network]\npublish = ['80:80', '10.0.0.1:80:81']",
            "network.publish = '80:80': the port is published twice",
        ),
        (
            "[privileges]\ncapabilities = ['CAP_CHOWN']",
            "privileges.capabilities = 'CAP_CHOWN': is no",
        ),
        ("[privileges]\nprofile = 'x'", "privileges.profile = 'x': must be \"strict\" or"),
        (
            "[privileges]\nadd_capabilities = ['x']",
            "privileges.add_capabilities = 'x': is no capability",
        ),
        ("[privileges]\nallow = ['read']", "privileges.allow = 'read': is no system call that"),
        (
            "[privileges]\nallow = ['bpf']\ndeny = ['bpf']",
            "privileges.allow = 'bpf': is no system call that the policy refuses",
        ),
        ("[privileges]\ndeny = ['reed']", "privileges.deny = 'reed': is no system call"),
        ("[environment]\n'a b' = 'x'", "environment = 'a b': is no name of a variable"),
        ('[environment]\na = "x\\u0000"', "environment.a = 'x\\x00': contains a null byte"),
        ("x", "Expected '=' after a key"),
        (b"\xff", "'utf-8' codec"),
        ("a = " + "[" * 3000, "maximum recursion depth exceeded"),
        ("[limits]\npids = " + "9" * 5000, "Exceeds the limit (4300 digits)"),
        ("user = true", "user = true: expected table, got bool"),
        ("users.token = 'secret'", "users: there is no such key, but hostname, root, network,"),
        ("[user]\nnamespace = 2020-01-01", "user.namespace = 2020-01-01: expected bool, got date"),
        ("environment = {A = 'x', B = 5}", "environment.B = 5: expected str, got int"),
        ("arguments = {'/bin/a.b' = 'x'}", "arguments./bin/a.b = 'x': expected array, got str"),
        ("arguments = {'/bin/a.b' = ['x', 1]}", "arguments./bin/a.b[1] = 1: expected str, got int"),
        ('arguments = {"/bin/a" = ["x\\u0000"]}', "arguments./bin/a = 'x\\x00': contains a null"),
        ("service.program = ''", "service.program = '': names no program"),
        ("[limits]\nmemory = '99999999T'", "limits.memory = '99999999T': is more than there can"),
        ("[limits]\nio_read = '1K'", "limits.io_read = '1K': is less than 64K"),
        ("[limits]\npids = 9999999", "limits.pids = 9999999: must be 2 to 4194304"),
        ("[limits]\ncpus = inf", "limits.cpus = inf: must be 0.01 to 4096"),
        ("[network]\naddress = ''", "network.address = '': must be like 10.98.0.10/24"),
        ("[network]\naddress = '224.0.0.5/4'", "network.address = '224.0.0.5/4': is no machine's"),
        ("[network]\naddress = '127.0.0.2/8'", "network.address = '127.0.0.2/8': is no machine's"),
        ("[network]\naddress6 = 'ff02::5/64'", "network.address6 = 'ff02::5/64': is no machine's"),
        (
            "[network]\nmac = '00:00:00:00:00:00'",
            "network.mac = '00:00:00:00:00:00': is nobody's",
        ),
    ],
)
def test_errors_name_file_key_and_value(text, error):
    with pytest.raises(ConfigError) as caught:
        config.parse(text if isinstance(text, bytes) else text.encode(), "mail", FILE)

    assert str(caught.value).startswith(f"/etc/autopod/pods/mail.toml: {error}")


def test_what_is_said_stands_in_for_the_profile():
    def privileges(text):
        return config.parse(f"[privileges]\n{text}".encode(), "mail", FILE).privileges

    service = privileges("profile = 'service'")
    assert "setpcap" in service.capabilities
    assert not service.no_new_privileges
    own = privileges("profile = 'service'\ncapabilities = ['kill']\nno_new_privileges = true")
    assert own.capabilities == ("kill",)
    assert own.no_new_privileges
    more = privileges("add_capabilities = ['net_raw']\nallow = ['keyctl']\ndeny = ['ptrace']")
    assert more.capabilities == (*capabilities.SERVICE, "net_raw")
    assert more.rules == policy.rules("strict", ("keyctl",), ("ptrace",))
    assert privileges("seccomp = 'none'").rules is None


def test_a_name_that_is_a_path_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot name a pod"):
        config.load(Places(tmp_path), "../mail")


def test_capabilities_by_name():
    assert capabilities.mask(["chown", "net_bind_service", "chown"]) == 1 << 0 | 1 << 10
    assert capabilities.names(1 << 0 | 1 << 10) == ("chown", "net_bind_service")
    assert capabilities.names(capabilities.mask(capabilities.NAMES)) == capabilities.NAMES


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("pool = 'x'", "pool = 'x': "),
        ("pool = '10.98.0.1/16'", "pool = '10.98.0.1/16': 10.98.0.1/16 has host bits set"),
        ("pool = '10.98.0.0/31'", "pool = '10.98.0.0/31': has no room for a pod"),
        ("pool6 = '10.98.0.0/16'", "pool6 = '10.98.0.0/16': "),
        ("pools = 1", "pools = 1: there is no such key"),
    ],
)
def test_errors_in_the_hosts_file(tmp_path, text, error):
    places = Places(tmp_path)
    places.network_config().parent.mkdir(parents=True)
    places.network_config().write_text(text)

    with pytest.raises(ConfigError) as caught:
        netconfig.pools(places)

    assert str(caught.value).startswith(f"{tmp_path}/etc/autopod/network.toml: {error}")


def test_a_directory_in_place_of_the_file(tmp_path):
    places = Places(tmp_path)
    places.config("mail").mkdir(parents=True)

    with pytest.raises(ConfigError, match=r"mail\.toml: Is a directory"):
        config.load(places, "mail")
