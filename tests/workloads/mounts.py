"""File systems that a program of the pod has mounted, with what is in them."""
# toml: [network]
# toml: mode = "none"
# toml: [privileges]
# toml: profile = "debian"

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})


def mounted():
    """Return what is mounted; its owner's number there is the host's."""
    lines = re.sub(r",[ug]id=[0-9]+", "", Path("/proc/self/mounts").read_text()).splitlines()
    return [line for line in lines if line.startswith("(pod) ")]


for point, kind, options in (
    ("/srv/small", "tmpfs", "size=1m,nr_inodes=100,mode=2750,uid=33,gid=34,noexec,noatime"),
    ("/srv/plain", "tmpfs", "ro"),
    ("/srv/proc", "proc", "hidepid=invisible"),
):
    os.mkdir(point)
    subprocess.run(["mount", "-t", kind, "-o", options, "any", point], check=True)
before = mounted()
Path("/srv/small/dir").mkdir()
os.chdir("/srv/small/dir")
Path("file").write_text("kept")
opened = open("file", "r+")  # noqa: SIM115 (it stays open over the restart)
opened.seek(2)
print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})
stat = os.stat("/srv/small")
facts = {
    "mounts": mounted() == before,
    "content": Path("/srv/small/dir/file").read_text() == "kept",
    "open file": opened.read() == "pt" and os.getcwd() == "/srv/small/dir",
    "owner": (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777) == (33, 34, 0o2750),
    "processes": Path("/srv/proc/self/comm").read_text() == Path("/proc/self/comm").read_text(),
}
opened.close()
os.chdir("/")
umount = ["umount", "/srv/small", "/srv/plain", "/srv/proc"]
facts["unmounted"] = subprocess.run(umount, check=False).returncode == 0 and not mounted()
wrong = [fact for fact, holds in facts.items() if not holds]
if wrong:
    print("mounts were", before, "are", mounted(), file=sys.stderr)
print(f"fail: {wrong}" if wrong else "ok", flush=True)
