"""A node of a cluster: a host with namespaces of all kinds, in which Pacemaker is its own master.

What Debian's packages would install is laid over the host's directories, in the node's mount
namespace only; what the daemons write goes to memory.
"""

import os
import signal
import subprocess
from pathlib import Path

from examples.exim.mail import wait_until
from examples.hosts import Machine

ROOT = Path(__file__).parents[2]
PACKAGES = ROOT / "build/pacemaker/root"
AGENT = Path("/usr/lib/ocf/resource.d/autopod/pod")
SETUP = """\
set -e
hostname node-{name}
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
install -D -m 755 {agent} /run/usr/lib/ocf/resource.d/autopod/pod
mount -t overlay overlay -o lowerdir=/run/usr:{packages}/usr:/usr /usr
for part in etc var/lib var/log; do
    mkdir -p /run/upper/$part /run/work/$part
    options=lowerdir={packages}/$part:/$part,upperdir=/run/upper/$part,workdir=/run/work/$part
    [ -d {packages}/$part ] && mount -t overlay overlay -o $options /$part
done
getent passwd hacluster >/dev/null || {{
    echo haclient:x:64998: >>/etc/group
    echo hacluster:x:64998:64998::/var/lib/pacemaker:/usr/sbin/nologin >>/etc/passwd
}}
mkdir -p /var/log/pacemaker /var/log/corosync /var/log/crmsh /run/crm
chown -R hacluster:haclient /var/lib/pacemaker /var/log/pacemaker /run/crm
touch /run/ready
exec catatonit -- sleep infinity
"""
COROSYNC = """\
totem {
    version: 2
    cluster_name: autopod
    transport: knet
    crypto_cipher: none
    crypto_hash: none
}
nodelist {
    node {
        name: node-a
        nodeid: 1
        ring0_addr: 192.0.2.1
    }
    node {
        name: node-b
        nodeid: 2
        ring0_addr: 192.0.2.2
    }
}
quorum {
    provider: corosync_votequorum
    two_node: 1
    wait_for_all: 0
}
logging {
    to_logfile: yes
    logfile: /var/log/corosync/corosync.log
    to_syslog: no
    to_stderr: no
}
"""


class Node(Machine):
    """A host called `a` is `node-a` to Pacemaker."""

    def hold(self) -> "subprocess.Popen[bytes]":
        """Return a process whose child is the init of new namespaces, and dies with it."""
        setup = SETUP.format(name=self.name, packages=PACKAGES, agent=ROOT / "pacemaker/pod")
        kinds = ("--net", "--mount", "--uts", "--ipc", "--pid", "--mount-proc", "--fork")
        holder = subprocess.Popen(["unshare", *kinds, "--kill-child", "sh", "-c", setup])
        self._init = 0

        def is_ready() -> bool:
            if holder.poll() is not None:
                raise OSError("the node cannot be set up")
            self._init = self._init or child_of(holder.pid)
            return bool(self._init) and Path(f"/proc/{self._init}/root/run/ready").exists()

        try:
            wait_until(is_ready, "the node is set up")
        except BaseException:
            holder.kill()
            holder.wait()
            raise
        return holder

    def into(self) -> list[str]:
        """The words before a command that let it run in its namespaces."""
        return ["nsenter", "-t", str(self._init), "--net", "--mount", "--uts", "--ipc", "--pid"]

    def stop_service(self, number: int = signal.SIGTERM) -> None:
        """Send the service a signal, past the command that waits for it out here."""
        if self._service:
            os.kill(child_of(self._service.pid), number)
            self._service.wait()
            self._service = None

    def join(self) -> None:
        """Start corosync and Pacemaker, which know their instance by AUTOPOD_PREFIX."""
        self.run("sh", "-c", f"cat >/etc/corosync/corosync.conf <<'END'\n{COROSYNC}END")
        self.run("corosync")
        argv = self.command("sh", "-c", "exec pacemakerd >/var/log/pacemaker/out 2>&1")
        self._cluster = subprocess.Popen(argv)

    def leave(self) -> None:
        """Stop both; the resources that run here are stopped, or moved."""
        os.kill(child_of(self._cluster.pid), signal.SIGTERM)
        self._cluster.wait()
        self.run("corosync-cfgtool", "-H", "--force")

    def explain(self) -> str:
        """Return the end of Pacemaker's log, but for what is only information."""
        log = self.run("cat", "/var/log/pacemaker/pacemaker.log", expect=None).splitlines()
        return "\n".join([line for line in log if "\tinfo: " not in line][-60:])


def child_of(pid: int) -> int:
    """Return the only child of process *pid*; 0 while it has none."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else 0
