"""System calls that os lacks, under the names and argument orders of section 2. A leaf.

Every function raises OSError with the call's name in its text and releases the interpreter lock
while it runs (ctypes.CDLL), so a call that waits for this daemon's own mount may be made from a
thread.
"""

import ctypes
import fcntl
import os
import signal

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
MNT_DETACH = 2
OPEN_TREE_CLONE = 1
AT_EMPTY_PATH = 0x1000
MOUNT_ATTR_RDONLY = 1
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSPICK_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
FSCONFIG_CMD_RECONFIGURE = 7
PR_SET_PDEATHSIG = 1
PR_SET_IO_FLUSHER = 57
CLONE_FILES = 0x400
PROT_READ = 1
PROT_WRITE = 2
MAP_SHARED = 1
FUSE_NOTIFY_RESEND = 7
FICLONE = 0x40049409
SYNC_FILE_RANGE_WAIT_BEFORE = 1
SYNC_FILE_RANGE_WRITE = 2
SYNC_FILE_RANGE_WAIT_AFTER = 4
EXT4_SUPER_MAGIC = 0xEF53
XFS_SUPER_MAGIC = 0x58465342
LOOP_CONFIGURE = 0x4C0A
LOOP_CTL_GET_FREE = 0x4C82
LO_FLAGS_READ_ONLY = 1
LO_FLAGS_AUTOCLEAR = 4

_SYS_CLONE = 56
_SYS_OPEN_TREE = 428
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_FSPICK = 433
_SYS_MOUNT_SETATTR = 442

_libc = ctypes.CDLL(None, use_errno=True)
_pylibc = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter lock
_libc.renameat2.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.syncfs.argtypes = (ctypes.c_int,)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_libc.mount.argtypes = (*[ctypes.c_char_p] * 3, ctypes.c_ulong, ctypes.c_char_p)
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


def _checked(result: int, call: str, path: str | bytes | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", path)
    return result


class mount_attr(ctypes.Structure):
    """`struct mount_attr` of linux/mount.h."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class loop_info64(ctypes.Structure):
    """`struct loop_info64` of linux/loop.h."""

    _fields_ = (
        ("lo_device", ctypes.c_uint64),
        ("lo_inode", ctypes.c_uint64),
        ("lo_rdevice", ctypes.c_uint64),
        ("lo_offset", ctypes.c_uint64),
        ("lo_sizelimit", ctypes.c_uint64),
        ("lo_number", ctypes.c_uint32),
        ("lo_encrypt_type", ctypes.c_uint32),
        ("lo_encrypt_key_size", ctypes.c_uint32),
        ("lo_flags", ctypes.c_uint32),
        ("lo_file_name", ctypes.c_uint8 * 64),
        ("lo_crypt_name", ctypes.c_uint8 * 64),
        ("lo_encrypt_key", ctypes.c_uint8 * 32),
        ("lo_init", ctypes.c_uint64 * 2),
    )


class loop_config(ctypes.Structure):
    """`struct loop_config` of linux/loop.h."""

    _fields_ = (
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", loop_info64),
        ("reserved", ctypes.c_uint64 * 8),
    )


def renameat2(olddirfd: int, oldpath: bytes, newdirfd: int, newpath: bytes, flags: int) -> None:
    """Rename with RENAME_* flags.

    Source: renameat2(2).
    """
    _checked(_libc.renameat2(olddirfd, oldpath, newdirfd, newpath, flags), "renameat2", newpath)


def mount(source: str, target: str, fstype: str, data: str) -> None:
    """Attach a new file system at *target*.

    Source: mount(2).
    """
    words = (os.fsencode(source), os.fsencode(target), fstype.encode(), 0, data.encode())
    _checked(_libc.mount(*words), "mount", target)


def umount2(target: str, flags: int) -> None:
    """Detach the topmost mount at *target*.

    Source: umount(2).
    """
    _checked(_libc.umount2(os.fsencode(target), flags), "umount2", target)


def syncfs(fd: int) -> None:
    """Write out the file system that *fd* is in.

    Source: syncfs(2).
    """
    _checked(_libc.syncfs(fd), "syncfs")


def open_tree(dirfd: int, pathname: bytes, flags: int) -> int:
    """Return a descriptor of a mount, with OPEN_TREE_CLONE of a detached copy of it.

    The copy takes no mounts below it along, and goes with its last descriptor.

    Source: fs/namespace.c, SYSCALL_DEFINE3(open_tree), v6.6.
    """
    fd: int = _libc.syscall(
        ctypes.c_long(_SYS_OPEN_TREE),
        ctypes.c_int(dirfd),
        ctypes.c_char_p(pathname),
        ctypes.c_uint(flags),
    )
    return _checked(fd, "open_tree", pathname)


def mount_setattr(dirfd: int, pathname: bytes, flags: int, attr_set: int) -> None:
    """Turn MOUNT_ATTR_* bits of a mount on.

    Source: mount_setattr(2).
    """
    attr = mount_attr(attr_set=attr_set)
    result: int = _libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_int(dirfd),
        ctypes.c_char_p(pathname),
        ctypes.c_uint(flags),
        ctypes.byref(attr),
        ctypes.c_size_t(ctypes.sizeof(attr)),
    )
    _checked(result, "mount_setattr", pathname)


def fsopen(fsname: bytes, flags: int) -> int:
    """Return a descriptor for making a file system of a type.

    Source: fs/fsopen.c, SYSCALL_DEFINE2(fsopen), v6.6.
    """
    fd: int = _libc.syscall(
        ctypes.c_long(_SYS_FSOPEN), ctypes.c_char_p(fsname), ctypes.c_uint(flags)
    )
    return _checked(fd, "fsopen", fsname)


def fsmount(fs_fd: int, flags: int, attr_flags: int) -> int:
    """Return a descriptor of a mount that is attached nowhere and goes with it.

    Source: fs/namespace.c, SYSCALL_DEFINE3(fsmount), v6.6.
    """
    fd: int = _libc.syscall(
        ctypes.c_long(_SYS_FSMOUNT),
        ctypes.c_int(fs_fd),
        ctypes.c_uint(flags),
        ctypes.c_uint(attr_flags),
    )
    return _checked(fd, "fsmount")


def fspick(dirfd: int, path: bytes, flags: int) -> int:
    """Return a descriptor for reconfiguring the file system that is mounted at *path*.

    Source: fs/fsopen.c, SYSCALL_DEFINE3(fspick), v6.6.
    """
    fd: int = _libc.syscall(
        ctypes.c_long(_SYS_FSPICK),
        ctypes.c_int(dirfd),
        ctypes.c_char_p(path),
        ctypes.c_uint(flags),
    )
    return _checked(fd, "fspick", path)


def fsconfig(fd: int, cmd: int, key: bytes | None = None, value: bytes | None = None) -> None:
    """Set a parameter of a file system that is being made or changed, or carry that out.

    Source: fs/fsopen.c, SYSCALL_DEFINE5(fsconfig), v6.6.
    """
    result: int = _libc.syscall(
        ctypes.c_long(_SYS_FSCONFIG),
        ctypes.c_int(fd),
        ctypes.c_uint(cmd),
        ctypes.c_char_p(key),
        ctypes.c_char_p(value),
        ctypes.c_int(0),
    )
    _checked(result, "fsconfig")


def sync_file_range(fd: int, offset: int, nbytes: int, flags: int) -> None:
    """Write a file's dirty pages to the device; to the end where *nbytes* is 0.

    Source: sync_file_range(2).
    """
    _checked(_libc.sync_file_range(fd, offset, nbytes, flags), "sync_file_range")


def fstatfs_type(fd: int) -> int:
    """Return the magic number of the type of the file system that a file is on.

    Source: fstatfs(2), f_type.
    """
    buffer = ctypes.create_string_buffer(256)  # struct statfs has 120 bytes
    _checked(_libc.fstatfs(ctypes.c_int(fd), buffer), "fstatfs")
    return ctypes.c_long.from_buffer(buffer).value


def loop_ctl_get_free(fd: int) -> int:
    """Return the number of a loop device that nobody uses.

    Source: loop(4), "/dev/loop-control".
    """
    return fcntl.ioctl(fd, LOOP_CTL_GET_FREE)


def loop_configure(fd: int, backing_fd: int, lo_flags: int) -> None:
    """Let a loop device be over a file, in one step.

    Source: loop(4), LOOP_CONFIGURE.
    """
    config = loop_config(fd=backing_fd, info=loop_info64(lo_flags=lo_flags))
    fcntl.ioctl(fd, LOOP_CONFIGURE, config)


def prctl(option: int, arg2: int) -> int:
    """Operate on the calling thread.

    Source: prctl(2).
    """
    zero = ctypes.c_ulong(0)
    result: int = _libc.prctl(ctypes.c_int(option), ctypes.c_ulong(arg2), zero, zero, zero)
    return _checked(result, "prctl")


def clone_files() -> int:
    """Fork a process that shares the table of file descriptors with its parent.

    Returns 0 in the child, which has this thread alone. To be called while there is no other:
    what fork(3) does to locks that other threads hold is not done.

    Source: clone(2), "CLONE_FILES".
    """
    zero = ctypes.c_ulong(0)
    flags = ctypes.c_ulong(CLONE_FILES | signal.SIGCHLD)
    pid: int = _pylibc.syscall(ctypes.c_long(_SYS_CLONE), flags, zero, zero, zero, zero)
    return _checked(pid, "clone")


def map_shared(fd: int, size: int) -> memoryview:
    """Map a file for reading and writing; `unmap` ends that.

    Unlike mmap.mmap this keeps no descriptor of its own.

    Source: mmap(2).
    """
    address = _libc.mmap(None, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    if address == ctypes.c_void_p(-1).value:
        _checked(-1, "mmap")
    return memoryview((ctypes.c_uint8 * size).from_address(address)).cast("B")


def unmap(mapped: memoryview) -> None:
    """End what `map_shared` began; nothing may refer to *mapped* any more.

    Source: munmap(2).
    """
    size = mapped.nbytes
    address = ctypes.addressof(ctypes.c_uint8.from_buffer(mapped))
    mapped.release()
    _checked(_libc.munmap(address, size), "munmap")
