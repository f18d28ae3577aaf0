"""What a pod is: apart from the host and from other pods, and gone without a trace."""

import os
import re
import socket
import subprocess
import time
from pathlib import Path

import pytest

from launcher import cgroups, config, enter, entrance, network, pods, program
from launcher.errors import PodError
from launcher.pods import ClockOffsets
from launcher.program import NULL, Program

from .conftest import LAUNCHER, wait_until

pytestmark = pytest.mark.needs("root", "namespaces")


def lines(host, name, script):
    return host.launch("run", name, "/bin/sh", "-c", script).stdout.splitlines()


def test_every_namespace_is_the_pods_own(pod):
    fds = enter.namespaces(pod.create("a"))

    ours = {name: os.stat(f"/proc/self/ns/{name}").st_ino for name in fds}
    theirs = {name: os.fstat(fd).st_ino for name, fd in fds.items()}
    for fd in fds.values():
        os.close(fd)

    assert list(theirs) == ["mnt", "pid", "ipc", "uts", "net", "cgroup", "time"]
    assert not set(ours.values()) & set(theirs.values())


def test_nothing_of_the_host_is_visible(pod):
    pod.configure("a", 'hostname = "mail.example"\n[environment]\nLANG = "C.UTF-8"')
    script = "hostname; pwd; umask; cat /proc/self/cgroup; env | sort; ls /proc/self/fd; ls /proc"

    out = lines(pod, "a", script)

    assert out[:3] == ["mail.example", "/", "0022"]
    assert {line.split(":")[2] for line in out[3:] if line[:1].isdigit() and ":" in line} == {"/"}
    at = out.index("HOME=/root")
    assert out[at : at + 4] == [
        "HOME=/root",
        "LANG=C.UTF-8",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PWD=/",
    ]
    assert out[at + 4 : at + 8] == ["0", "1", "2", "3"]
    assert {name for name in out[at + 8 :] if name.isdigit()} <= set(map(str, range(1, 20)))


def test_mounts_are_the_pods_own(pod):
    out = lines(pod, "a", "cat /proc/self/mountinfo")

    points = [line.split()[4] for line in out]
    ids = {line.split()[0] for line in out}
    outside = [line for line in out if line.split()[1] not in ids]
    assert [line.split()[4] for line in outside] == ["/"], "only the root has its parent outside"
    assert [p for p in points if not p.startswith(("/proc/", "/sys/"))] == [
        "/",
        "/dev",
        "/dev/pts",
        "/dev/shm",
        "/sys",
        "/etc/hosts",
        "/proc",
    ]


def test_masks_and_read_only_paths(pod):
    script = """
        wc -c < /proc/kallsyms
        ls /proc/acpi | wc -l
        for file in /proc/sys/kernel/core_pattern /proc/sys/vm/drop_caches /sys/x; do
            (echo x > $file) 2>&1 | sed 's/.*: //'
        done
    """

    out = lines(pod, "a", script)

    assert [line.strip() for line in out] == [
        "0",
        "0",
        *["Read-only file system"] * 3,
    ]


def test_device_nodes_are_not_the_hosts(pod):
    before = os.stat("/dev/null").st_mode

    lines(pod, "a", "chmod 600 /dev/null /dev/zero /dev/tty; echo x > /dev/null")

    assert os.stat("/dev/null").st_mode == before


CONFINEMENT = (
    "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters"
)  # fmt: skip


def confinement(status):
    fields = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    return {name: fields[name] for name in CONFINEMENT}


@pytest.mark.parametrize("no_new_privileges", ["true", "false"])
def test_every_program_is_confined_alike(pod, no_new_privileges):
    pod.configure(
        "a",
        f'[privileges]\ncapabilities = ["chown", "kill"]\nno_new_privileges = {no_new_privileges}',
    )

    pod.launch("start", "a", "/bin/sleep", "1000")
    first = enter.pids(pod.pod("a"))[0]
    started = confinement(Path(f"/proc/{first}/status").read_text())
    others = [
        confinement(pod.launch(verb, "a", "/bin/cat", "/proc/self/status").stdout)
        for verb in ("run", "exec")
    ]

    assert others == [started, started]
    assert started == {
        "CapInh": "0" * 16,
        "CapPrm": "0000000000000021",
        "CapEff": "0000000000000021",
        "CapBnd": "0000000000000021",
        "CapAmb": "0" * 16,
        "NoNewPrivs": str(int(no_new_privileges == "true")),
        "Seccomp": "2",
        "Seccomp_filters": "1",
    }


def test_every_program_is_in_the_pods_groups(pod):
    pod.configure("a", "[limits]\npids = 50")
    running = pod.create("a")
    pod.launch("start", "a", "/bin/sleep", "1000")

    def members():
        return (running.cgroups[0] / "cgroup.procs").read_text().split()

    with subprocess.Popen([LAUNCHER, "exec", "a", "/bin/sleep", "1000"]) as client:
        wait_until(lambda: len(members()) == 3)
        groups = {Path(f"/proc/{pid}/cgroup").read_text() for pid in members()}
        client.terminate()

    assert len(groups) == 1


def test_init_has_no_privilege_and_cannot_be_read(pod):
    init = pod.create("a").init_pid
    status = confinement(Path(f"/proc/{init}/status").read_text())
    script = """
        for file in exe root cwd fd/0 ns/mnt environ mem; do
            { cat /proc/1/$file || ls /proc/1/$file/; } > /dev/null 2>&1 && echo open: $file
        done; true
    """

    assert {status[name] for name in CONFINEMENT[:5]} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert lines(pod, "a", script) == []


def test_started_program_is_the_inits_child_and_outlives_the_launcher(pod):
    pod.launch("start", "a", "/bin/sh", "-c", "readlink /proc/self/fd/0; sleep 1000; true")

    rows = pod.launch("ps", "a", "--json").stdout
    log = pod.places.log("a")

    wait_until(lambda: log.read_text() == "/dev/null\n")
    assert '"command": "init -P"' in rows
    assert '"parent": 1' in rows
    assert log.stat().st_mode & 0o777 == 0o600


def test_orphans_are_reaped(pod):
    pod.launch("start", "a", "/bin/sh", "-c", "(sleep 0 & exec sleep 0.01) ; exec sleep 1000")

    def only_sleep():
        return len(enter.pids(pod.pod("a"))) == 1

    wait_until(only_sleep)


def test_two_pods_side_by_side(pod, debian_root):
    pod.mount("b", debian_root)
    server = (
        "import socket; s = socket.create_server(('', 4000)); print('up', flush=True)\n"
        "while True: c, _ = s.accept(); c.sendall(socket.gethostname().encode()); c.close()"
    )
    for name, last in (("a", 10), ("b", 11)):
        pod.configure(name, f'[network]\naddress = "10.98.7.{last}/24"')
        pod.launch("start", name, "/usr/bin/python3", "-c", server)
        wait_until(lambda name=name: pod.places.log(name).read_text() == "up\n")

    def asked(address):
        with socket.create_connection((address, 4000), timeout=60) as connection:
            return connection.recv(100)

    ask = "import socket,sys; print(socket.create_connection(('10.98.7.11', 4000)).recv(9))"
    assert [asked("10.98.7.10"), asked("10.98.7.11")] == [b"a", b"b"]
    assert pod.launch("exec", "a", "/usr/bin/python3", "-c", ask).stdout == "b'b'\n"
    assert not set(enter.pids(pod.pod("a"))) & set(enter.pids(pod.pod("b")))
    pod.launch("kill", "a")
    assert asked("10.98.7.11") == b"b"


def test_network_identity_stays_over_restarts(pod):
    pod.configure("a", '[network]\naddress = "10.98.7.10/24"\nmac = "02:50:4f:44:00:0a"')

    def shown():
        net = f"--net=/proc/{pod.create('a').init_pid}/ns/net"
        argv = (
            ["nsenter", net, "ip", "-o", "addr", "show", "dev", "eth0"],
            ["nsenter", net, "ip", "route"],
        )
        out = [subprocess.check_output(a, text=True).replace("tentative ", "") for a in argv]
        pods.destroy(pod.places, "a")
        return [*out, os.stat(network.path(pod.places, "a")).st_ino]

    first = shown()

    assert "10.98.7.10/24" in first[0]
    assert "default via 10.98.7.1 dev eth0" in first[1]
    assert shown() == first


def test_changed_address_takes_effect(pod):
    for last in (10, 11):
        pod.configure("a", f'[network]\naddress = "10.98.7.{last}/24"')
        pod.create("a")
        pods.destroy(pod.places, "a")

    alias = subprocess.check_output(["ip", "link"], text=True)

    assert "alias 10.98.7.11/24" in alias
    assert "10.98.7.10" not in alias


def test_address_of_another_pod_is_refused(pod, debian_root):
    pod.mount("b", debian_root)
    for name in ("a", "b"):
        pod.configure(name, '[network]\naddress = "10.98.7.10/24"')
    pod.create("a")

    with pytest.raises(PodError, match=r"10\.98\.7\.10 is taken by pod 'a'"):
        pod.create("b")

    assert not network.path(pod.places, "b").exists()


def test_without_network(pod):
    pod.configure("a", '[network]\nmode = "none"')

    out = lines(pod, "a", "cat /proc/net/dev | tail -n +3; cat /proc/net/route | wc -l")

    assert [line.split(":")[0].strip() for line in out] == ["lo", "1"]
    assert not subprocess.check_output(["ip", "link", "show", "type", "veth"], text=True)


def test_clocks_are_ahead_as_told(pod):
    pod.create("a", clocks=ClockOffsets(monotonic_ns=10**15 + 5 * 10**8, boottime_ns=-(10**9)))
    code = "import time; print(time.clock_gettime(1), time.clock_gettime(7))"

    out = pod.launch("exec", "a", "/usr/bin/python3", "-c", code).stdout.split()

    monotonic, boottime = time.clock_gettime(1), time.clock_gettime(7)
    assert float(out[0]) == pytest.approx(monotonic + 10**6 + 0.5, abs=5)
    assert float(out[1]) == pytest.approx(boottime - 1, abs=5)
    assert pod.pod("a").clocks == ClockOffsets(10**15 + 5 * 10**8, -(10**9))


def test_limits_hold(pod):
    pod.configure("a", '[limits]\nmemory = "64M"\npids = 20\ncpus = 0.5')
    running = pod.create("a")
    bomb = """if True:
        import os, signal
        try:
            while os.fork(): pass
            signal.pause()
        except BlockingIOError:
            print("stopped")"""
    pod.launch("start", "a", "/usr/bin/python3", "-c", bomb)
    wait_until(lambda: pod.places.log("a").read_text() == "stopped\n")
    assert len(enter.pids(running)) >= 17
    pod.launch("kill", "a")
    eater = pod.launch("run", "a", "/usr/bin/python3", "-c", "b'x' * (1 << 28)", expect=None)

    assert eater.returncode == 137, "the kernel's out-of-memory killer"
    said = r"launcher: the kernel killed python3 \(\d+\): the pod's 65536 KiB are used up\n"
    assert re.fullmatch(said, eater.stderr)


def test_a_limit_without_controller_is_refused(pod, monkeypatch):
    pod.configure("a", "[limits]\npids = 20")
    monkeypatch.setattr(cgroups, "hierarchies", list)

    with pytest.raises(PodError, match="no controller for pids"):
        pod.create("a")


def test_find_knows_a_stale_record(pod):
    init = pod.create("a").init_pid
    record = pod.places.run("a") / "pod.json"
    text = record.read_text()

    record.write_text(text.replace(f'"init_pid":{init}', f'"init_pid":{os.getpid()}'))
    assert pods.find(pod.places, "a") is None
    record.write_text("{")
    assert pods.find(pod.places, "a") is None
    record.write_text(text)
    assert pod.pod("a").init_pid == init


def test_create_twice_is_refused(pod):
    pod.create("a")

    with pytest.raises(PodError, match="running already"):
        pod.create("a")


def test_destroy_is_idempotent(pod):
    pod.create("a")

    for _ in range(3):
        pods.destroy(pod.places, "a")

    assert pods.find(pod.places, "a") is None
    assert cgroups.leftovers(pod.places, "a") == []


def test_destroy_ends_what_the_kernel_has_frozen(pod):
    running = pod.create("a")
    pod.launch("start", "a", "/bin/sleep", "1000")
    (running.cgroups[0] / "cgroup.freeze").write_text("1")

    pods.destroy(pod.places, "a")

    assert pods.find(pod.places, "a") is None


def test_processes_of_the_pod_are_found_zombies_too(pod):
    running = pod.create("a")
    zombie = "import os, time; os.fork() or os._exit(0); time.sleep(1000)"
    log_fd = program.open_log(running)
    argv = ["/usr/bin/python3", "-c", zombie]
    settings = config.load(pod.places, "a")
    variables = program.environment(settings)
    what = Program(argv, variables, (NULL, log_fd, log_fd), detached=True)
    program.execute(entrance.of(running, settings), what)
    os.close(log_fd)

    def states():
        pids = enter.pids(running)
        return sorted(Path(f"/proc/{pid}/stat").read_text().split()[2] for pid in pids)

    wait_until(lambda: states() == ["S", "Z"])


def test_a_pod_that_has_ended_since_it_was_found_has_no_processes(places):
    init = os.fork()
    if init == 0:
        os._exit(0)
    os.waitpid(init, 0)
    assert enter.pids(pods.Pod("a", init, 1, (), ClockOffsets(), places)) == []


def test_root_that_is_not_mounted(host):
    host.places.root("a").mkdir(parents=True)

    failed = host.launch("start", "a", "/bin/true", expect=1)

    assert failed.stderr == (
        f"launcher: error: nothing is mounted at {host.places.root('a')}\n"
        "launcher: hint: stackfs mount a --lower DIR\n"
    )


STAGES = {
    "control groups": lambda host: cgroups.leftovers(host.places, "a"),
    "record": lambda host: (host.places.run("a") / "pod.json").exists(),
    "pod": lambda host: pods.find(host.places, "a") is not None,
}


@pytest.mark.parametrize("stage", STAGES)
def test_the_client_killed_while_it_starts_a_pod(pod, stage):
    with subprocess.Popen([LAUNCHER, "start", "a", "/bin/sleep", "1000"]) as client:
        wait_until(lambda: STAGES[stage](pod))
        client.kill()

    pod.launch("stop", "a")
    assert pods.find(pod.places, "a") is None
    assert cgroups.leftovers(pod.places, "a") == []
    pod.launch("start", "a", "/bin/sleep", "1000")
    assert len(enter.pids(pod.pod("a"))) == 1
