"""Processes with a root of their own (chroot(2)); the directory of one is outside of it."""
# toml: [network]
# toml: mode = "none"
# toml: [privileges]
# toml: profile = "debian"

import os
import signal
import sys
from pathlib import Path

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)


os.makedirs("/srv/jail/dir")
Path("/srv/jail/dir/file").write_text("inside")
Path("/srv/file").write_text("outside")
out, into = os.pipe()
for where in ("/srv/jail/dir", "/srv"):
    if os.fork() == 0:
        os.chdir(where)
        os.chroot("/srv/jail")
        os.write(into, b"1")
        signal.sigwait({signal.SIGUSR1})
        here = Path("file").read_text()
        found = (os.listdir("/"), Path("/dir/file").read_text(), here, os.path.exists("/usr"))
        expected = "inside" if where.endswith("dir") else "outside"
        os._exit(found != (["dir"], "inside", expected, False))
assert os.read(out, 1) + os.read(out, 1) == b"11"

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


os.killpg(0, signal.SIGUSR1)
assert [os.wait()[1] for _ in range(2)] == [0, 0]
assert os.path.exists("/usr")

print("ok", flush=True)
