"""Run as root of a pod: a pid namespace of its own and a plain chroot, the barrier being one above.

Usage: escape.py ROOT_FD BARRIER_FD BARRIER_PATH_FD OTHER_BARRIER_FD. The last is the barrier of
another pod. Prints, as JSON, what each attempt ended with: an errno's name, or what it reached.
"""

import ctypes
import errno
import json
import mmap
import os
import struct
import sys
import threading

ROOT, BARRIER, BARRIER_PATH, OTHER = map(int, sys.argv[1:5])
libc = ctypes.CDLL(None, use_errno=True)


def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "call")
    return result


def syscall(number, *arguments):
    """Numbers are passed as long, everything else as it is."""
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return checked(libc.syscall(ctypes.c_long(number), *words))


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


def openat2_path():
    os.makedirs("/hole8", exist_ok=True)
    os.chroot("/hole8")
    how = struct.pack("<QQQ", os.O_PATH | os.O_DIRECTORY, 0, 0)
    at = syscall(437, ROOT, b"../..", how, len(how))
    return reached(".", dir_fd=at)


def tree_of_the_barrier():
    """open_tree(2), a copy of the mount at a leaked descriptor."""
    at = syscall(428, BARRIER_PATH, b"", 0x1000 | 1)
    return reached(".", dir_fd=at)


def overlay_of_the_barrier():
    os.makedirs("/over", exist_ok=True)
    data = b"lowerdir=/proc/self/fd/%d:/over" % BARRIER_PATH
    checked(libc.mount(b"o", b"/over", b"overlay", ctypes.c_ulong(0), data))
    return reached("/over")


def mount_namespace_of_its_own():
    checked(libc.unshare(0x20000))
    return step_by_step_from("/hole7")


def step_by_step_from(hole):
    os.makedirs(hole, exist_ok=True)
    os.chroot(hole)
    for _ in range(10):
        os.chdir("..")
    return reached(".")


def moved_out_of_a_nested_chroot():
    """Another process moves the working directory out of the chroot that it is in."""
    os.makedirs("/jail/inner/deep")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(reader, 1)
        os.rename("/jail/inner/deep", "/moved-out")
        os._exit(0)
    os.chroot("/jail/inner")
    os.chdir("/deep")
    os.write(writer, b"x")
    os.waitpid(pid, 0)
    for _ in range(10):
        os.chdir("..")
    return reached(".")


def processes_of_procfs():
    """Every process that shows is one of the pod."""
    roots = [f"/proc/{pid}/root/../.." for pid in os.listdir("/proc") if pid.isdigit()]
    for path in roots:
        found = reached(path)
        if "escape-mark" not in found:
            return found
    raise PermissionError(errno.EACCES, "nothing but the pod's own root")


def working_directories_of_procfs():
    procfs = os.open("/proc", os.O_PATH)
    os.makedirs("/hole10", exist_ok=True)
    os.chroot("/hole10")
    return reached(f"{os.getppid()}/cwd/../..", dir_fd=procfs)


def handle_of_the_barrier():
    """open_by_handle_at(2) of FUSE's node 1: 64-bit node id, generation."""
    for kind, layout in ((0x81, "<IIII"), (0x81, "<QI")):
        body = struct.pack(layout, 0, 1, 0, 0) if layout == "<IIII" else struct.pack(layout, 1, 0)
        handle = ctypes.create_string_buffer(struct.pack("<Ii", len(body), kind) + body)
        try:
            at = syscall(304, ROOT, handle, os.O_PATH)
        except OSError as e:
            if e.errno != errno.ESTALE:
                raise
            continue
        return reached(".", dir_fd=at)
    raise PermissionError(errno.EACCES, "no handle opens it")


def handle_of_another_pods_barrier():
    return reached("root", dir_fd=OTHER)


def parent_of_another_pods_barrier():
    os.fchdir(OTHER)
    return reached("..")


def inotify_of_the_barrier():
    fd = checked(libc.inotify_init1(0))
    return checked(libc.inotify_add_watch(fd, b"/proc/self/fd/%d" % BARRIER_PATH, 0x100))


def fanotify_of_the_barrier():
    fd = checked(libc.fanotify_init(0x200, os.O_RDONLY))
    path = b"/proc/self/fd/%d" % BARRIER_PATH
    arguments = (1, ctypes.c_ulong(0x8000020), ctypes.c_long(-100), path)
    return checked(libc.fanotify_mark(ctypes.c_int(fd), *arguments))


def links_and_dots():
    """`..` and links to it first, in the middle, last, through each other, and absolute."""
    os.makedirs("/k/k/k", exist_ok=True)
    os.chroot("/k")
    os.chdir("/k/k")
    os.symlink("..", "up")
    os.symlink("up/up/../up", "ups")
    os.symlink("../../../../..", "far")
    os.symlink("/proc/self/cwd/../..", "magic")
    os.mkdir("d")
    outside = []
    for path in ("up/up/up/up", "ups/ups", "d/../far", "far", "far/.", "d/../far/../d", "ups/far"):
        os.chroot(".")  # what is above is above the new root now
        os.chdir("..")
        try:
            outside.append(reached(f"k/{path}"))
        except OSError as e:
            if e.errno not in (errno.EACCES, errno.ENOENT):
                raise
    if outside:
        return outside
    raise PermissionError(errno.EACCES, "none")


def race_of_renames():
    """Directories on the path move while it is walked."""
    for name in ("/r/a/b/c", "/r/x/y/z"):
        os.makedirs(name, exist_ok=True)
    stop = threading.Event()

    def move():
        while not stop.is_set():
            os.rename("/r/a/b/c", "/r/c")
            os.rename("/r/c", "/r/a/b/c")
            os.rename("/r/a/b", "/r/x/y/z/b")
            os.rename("/r/x/y/z/b", "/r/a/b")

    at = os.open("/r/a/b/c", os.O_PATH)
    mover = threading.Thread(target=move)
    mover.start()
    os.mkdir("/r/hole")
    os.chroot("/r/hole")
    found, refused = [], 0
    try:
        for depth in range(2, 402):
            try:
                names = reached("/".join([".."] * (depth % 9 + 1)), dir_fd=at)
            except PermissionError:
                refused += 1
            except FileNotFoundError:
                continue
            else:
                if "root" in names or "lower" in names:
                    found.append(names)
    finally:
        stop.set()
        mover.join()
    if found or not refused:
        return found or "never refused"
    raise PermissionError(errno.EACCES, "never further than the pod's root")


def ring(setup_flags, entry_flags):
    """Open `../..` of the pod's root by io_uring_setup(2), IORING_OP_OPENAT."""
    os.makedirs("/hole9", exist_ok=True)
    os.chroot("/hole9")
    parameters = ctypes.create_string_buffer(120)
    struct.pack_into("<IIIII", parameters, 0, 0, 0, setup_flags, 0, 10)
    fd = syscall(425, 4, parameters)
    words = struct.unpack("<30I", parameters.raw)
    sq, cq = words[10:20], words[20:30]
    size = max(sq[6] + 4 * words[0], cq[5] + 16 * words[1])
    rings = mmap.mmap(fd, size, offset=0)
    entries = mmap.mmap(fd, 64 * words[0], offset=0x10000000)
    path = ctypes.create_string_buffer(b"../..")
    fields = (18, entry_flags, 0, ROOT, 0, ctypes.addressof(path), 0, os.O_DIRECTORY, 7)
    struct.pack_into("<BBHiQQIIQ", entries, 0, *fields)
    struct.pack_into("<I", rings, sq[6], 0)
    struct.pack_into("<I", rings, sq[1], 1)
    syscall(426, fd, 1, 1, 1 | (2 if setup_flags else 0), 0, 0)
    while struct.unpack_from("<I", rings, cq[1])[0] == 0:
        pass
    _, result = struct.unpack_from("<Qi", rings, cq[5])
    if result < 0:
        raise OSError(-result, "openat")
    return reached(".", dir_fd=result)


def ring_at_once():
    return ring(0, 0)


def ring_in_a_worker():
    return ring(0, 1 << 4)


def ring_polled():
    return ring(2, 0)


def user_namespace():
    checked(libc.unshare(0x10000000))
    return from_root_descriptor()


ATTEMPTS = [
    openat2_path,
    tree_of_the_barrier,
    overlay_of_the_barrier,
    mount_namespace_of_its_own,
    moved_out_of_a_nested_chroot,
    processes_of_procfs,
    working_directories_of_procfs,
    handle_of_the_barrier,
    handle_of_another_pods_barrier,
    parent_of_another_pods_barrier,
    inotify_of_the_barrier,
    fanotify_of_the_barrier,
    links_and_dots,
    race_of_renames,
    ring_at_once,
    ring_in_a_worker,
    ring_polled,
    user_namespace,
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
        except (AssertionError, ValueError, TypeError, struct.error) as e:
            ended = repr(e)
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
    open("/escape-mark", "w").close()
    if libc.mount(b"proc", b"/proc", b"proc", ctypes.c_ulong(0), None) < 0:
        raise OSError(ctypes.get_errno(), "mount proc")
    print(json.dumps({function.__name__: attempt(function) for function in ATTEMPTS}))


main()
