"""Calls that the pod's monitor carries out: also one that it has begun at the checkpoint."""
# toml: [network]
# toml: mode = "none"
# toml: [privileges]
# toml: profile = "debian"

import ctypes
import errno
import os
import signal
import threading

libc = ctypes.CDLL(None, use_errno=True)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
over = threading.Event()
wrong = []


def mount(kind):
    result = libc.mount(b"any", b"/srv/t", kind, ctypes.c_ulong(0), None)
    return ctypes.get_errno() if result else 0


def ask():
    while not over.is_set():
        result = mount(b"sysfs")
        if result != errno.EPERM:
            wrong.append(errno.errorcode[result])


def mount_and_unmount():
    done = mount(b"tmpfs") == 0 and os.path.ismount("/srv/t") and libc.umount2(b"/srv/t", 0) == 0
    return done and not os.path.ismount("/srv/t")


os.mkdir("/srv/t")
if not mount_and_unmount():
    print("fail: cannot mount", flush=True)
threads = [threading.Thread(target=ask) for _ in range(2)]
for thread in threads:
    thread.start()
child = os.fork()
if child == 0:
    signal.sigwait({signal.SIGUSR1})
    os._exit(0 if mount_and_unmount() else 1)
print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})
over.set()
for thread in threads:
    thread.join()
os.kill(child, signal.SIGUSR1)
if os.waitpid(child, 0)[1] or not mount_and_unmount():
    wrong.append("cannot mount any more")
print(f"fail: {wrong}" if wrong else "ok", flush=True)
