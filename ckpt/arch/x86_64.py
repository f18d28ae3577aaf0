"""x86_64: registers, system-call numbers and the instructions that ckpt injects.

Everything that another architecture would do otherwise stands in this module; an aarch64.py beside
it would offer the same names. Pure: bytes and structures only.
"""

import ctypes
import struct
from ctypes import c_uint64
from typing import Final

ARCHITECTURE: Final = "x86_64"
TASK_SIZE: Final = 0x7FFF_FFFF_F000
"""End of user addresses: arch/x86/include/asm/page_64.h, TASK_SIZE_MAX with four-level tables."""

SYSCALL_INSTRUCTION: Final = b"\x0f\x05"
ARGUMENT_REGISTERS: Final = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
_WORD: Final = (1 << 64) - 1

# <asm/unistd_64.h>
SYSCALLS: Final[dict[str, int]] = {
    "read": 0, "write": 1, "open": 2, "close": 3, "fstat": 5, "poll": 7, "lseek": 8, "mmap": 9,
    "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14,
    "rt_sigreturn": 15, "ioctl": 16, "pread64": 17, "pwrite64": 18, "select": 23, "mremap": 25,
    "mincore": 27, "madvise": 28, "shmget": 29, "shmat": 30, "shmctl": 31, "dup2": 33,
    "pause": 34, "nanosleep": 35, "getitimer": 36,
    "setitimer": 38, "getpid": 39, "socket": 41, "connect": 42, "sendto": 44, "recvfrom": 45,
    "sendmsg": 46, "recvmsg": 47, "shutdown": 48, "bind": 49, "listen": 50, "socketpair": 53,
    "setsockopt": 54, "getsockopt": 55, "clone": 56, "exit": 60, "wait4": 61, "kill": 62,
    "semget": 64, "semop": 65, "semctl": 66, "msgget": 68, "msgsnd": 69, "msgrcv": 70, "msgctl": 71,
    "fcntl": 72, "flock": 73, "ftruncate": 77, "chdir": 80, "fchdir": 81, "umask": 95,
    "getrlimit": 97, "getuid": 102, "setuid": 105, "setpgid": 109, "getpgrp": 111, "setsid": 112,
    "setgroups": 116, "setresuid": 117, "setresgid": 119, "getpgid": 121, "setfsuid": 122,
    "setfsgid": 123, "getsid": 124, "capget": 125, "capset": 126, "rt_sigpending": 127,
    "rt_sigtimedwait": 128, "rt_sigqueueinfo": 129, "rt_sigsuspend": 130, "sigaltstack": 131,
    "personality": 135, "getpriority": 140, "setpriority": 141, "sched_setscheduler": 144,
    "mlock": 149, "munlock": 150, "mlockall": 151, "munlockall": 152,
    "prctl": 157, "arch_prctl": 158, "setrlimit": 160,
    "chroot": 161, "futex": 202, "sched_setaffinity": 203, "sched_getaffinity": 204,
    "io_setup": 206, "io_destroy": 207, "io_getevents": 208, "io_submit": 209,
    "set_tid_address": 218, "restart_syscall": 219, "semtimedop": 220,
    "timer_create": 222, "timer_settime": 223, "timer_gettime": 224, "timer_getoverrun": 225,
    "timer_delete": 226, "clock_settime": 227, "clock_gettime": 228, "clock_nanosleep": 230,
    "exit_group": 231, "epoll_wait": 232, "epoll_ctl": 233, "tgkill": 234, "mq_timedreceive": 243,
    "ioprio_set": 251, "ioprio_get": 252, "inotify_add_watch": 254, "openat": 257,
    "pselect6": 270, "ppoll": 271, "unshare": 272, "set_robust_list": 273, "get_robust_list": 274,
    "epoll_pwait": 281, "fallocate": 285, "timerfd_settime": 286, "timerfd_gettime": 287,
    "accept4": 288, "dup3": 292, "rt_tgsigqueueinfo": 297, "recvmmsg": 299, "prlimit64": 302,
    "setns": 308, "kcmp": 312, "sched_setattr": 314, "sched_getattr": 315, "seccomp": 317,
    "memfd_create": 319, "userfaultfd": 323, "membarrier": 324, "mlock2": 325, "rseq": 334,
    "pidfd_open": 434, "clone3": 435, "close_range": 436, "pidfd_getfd": 438, "epoll_pwait2": 441,
    "futex_waitv": 449, "mseal": 462,
}  # fmt: skip

_CALL_NAMES: Final = {number: name for name, number in SYSCALLS.items()}

# Results of an interrupted system call; the first four are seen by a tracer only.
# Source: include/linux/errno.h.
_ERESTARTSYS: Final = -512
_ERESTARTNOINTR: Final = -513
_ERESTARTNOHAND: Final = -514
_ERESTART_RESTARTBLOCK: Final = -516
_EINTR: Final = -4


class user_regs_struct(ctypes.Structure):  # noqa: N801 (the kernel's name)
    """General registers, as NT_PRSTATUS transfers them: <sys/user.h>."""

    _fields_ = tuple(
        (name, c_uint64)
        for name in (
            "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx",
            "rdx", "rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base",
            "gs_base", "ds", "es", "fs", "gs",
        )
    )  # fmt: skip


Registers = user_regs_struct
REGISTER_NAMES: Final = tuple(name for name, *_ in Registers._fields_)
_CALL_REGISTERS: Final = struct.Struct("<10Q")
"""What a system call begins with: from r10 on to rip."""


def copy(registers: Registers) -> Registers:
    """Return a copy of *registers*."""
    return Registers.from_buffer_copy(registers)


def is_64_bit(registers: Registers) -> bool:
    """Does the thread run 64-bit code? (__USER_CS: arch/x86/include/asm/segment.h)."""
    return bool(registers.cs == 0x33)


def prepare_call(registers: Registers, at: int, number: int, args: tuple[int, ...]) -> None:
    """Make *registers* perform a system call at the `syscall` instruction at address *at*."""
    rdi, rsi, rdx, r10, r8, r9 = _six(args)
    in_no_call = _WORD  # nothing to restart
    _CALL_REGISTERS.pack_into(
        registers, Registers.r10.offset, r10, r9, r8, number, 0, rdx, rsi, rdi, in_no_call, at
    )


def _six(args: tuple[int, ...]) -> list[int]:
    """Return the arguments of a system call as words, six of them."""
    return [arg & _WORD for arg in args] + [0] * (6 - len(args))


def result(registers: Registers) -> int:
    """Return what the system call returned: negative for an error number."""
    return signed(registers.rax)


def signed(word: int) -> int:
    """Return the 64-bit *word* as a signed number."""
    return word - (1 << 64) if word >> 63 else word


def pending_call(registers: Registers) -> tuple[str, tuple[int, ...]] | None:
    """Return name and arguments of the system call that the stop interrupted, if there is one."""
    if signed(registers.orig_rax) < 0:
        return None
    name = _CALL_NAMES.get(registers.orig_rax, str(registers.orig_rax))
    return name, tuple(getattr(registers, register) for register in ARGUMENT_REGISTERS)


def will_restart(registers: Registers) -> bool:
    """Will the kernel make the interrupted call again by itself, with the same arguments?"""
    plain = (_ERESTARTSYS, _ERESTARTNOINTR, _ERESTARTNOHAND)
    return signed(registers.orig_rax) >= 0 and result(registers) in plain


def needs_restart_block(registers: Registers) -> bool:
    """Would the kernel finish the interrupted call from its own notes (restart_syscall(2))?"""
    return signed(registers.orig_rax) >= 0 and result(registers) == _ERESTART_RESTARTBLOCK


def returns_eintr(registers: Registers) -> bool:
    """Does the stopped thread come out of a system call with EINTR?"""
    return signed(registers.orig_rax) >= 0 and result(registers) == _EINTR


def restart(registers: Registers) -> None:
    """Make *registers* repeat the interrupted call with the same arguments.

    Source: arch/x86/kernel/signal.c, arch_do_signal_or_restart().
    """
    registers.rax = registers.orig_rax
    registers.rip -= len(SYSCALL_INSTRUCTION)
    registers.orig_rax = (1 << 64) - 1


def fail_interrupted(registers: Registers) -> None:
    """Make *registers* return EINTR from the interrupted call."""
    registers.rax = _EINTR & (1 << 64) - 1
    registers.orig_rax = (1 << 64) - 1


# What processes that are being made run: they die with the tracer, so that it may stop them by
# SIGTRAP.
BATCH: Final = 2
"""Offset of: the system calls of a table, until one fails."""
EMBRYO_CODE: Final = bytes.fromhex(
    "0f05"  # 0  syscall
    "4839eb"  # 2  next: cmp %rbp, %rbx
    "7429"  # 5  je end
    "488b03"  # 7  mov (%rbx), %rax
    "488b7b08"  # 10 mov 8(%rbx), %rdi
    "488b7310"  # 14 mov 16(%rbx), %rsi
    "488b5318"  # 18 mov 24(%rbx), %rdx
    "4c8b5320"  # 22 mov 32(%rbx), %r10
    "4c8b4328"  # 26 mov 40(%rbx), %r8
    "4c8b4b30"  # 30 mov 48(%rbx), %r9
    "0f05"  # 34 syscall
    "4883c338"  # 36 add $56, %rbx
    "483d00f0ffff"  # 40 cmp $-4096, %rax
    "76d2"  # 46 jbe next (unsigned: no error)
    "cc"  # 48 end: int3
)
_BATCH_ENTRY: Final = struct.Struct("<7Q")
BATCH_ENTRY_SIZE: Final = _BATCH_ENTRY.size


def batch_entry(number: int, args: tuple[int, ...]) -> bytes:
    """Return the entry of a system call in the table of a batch."""
    return _BATCH_ENTRY.pack(number, *_six(args))


def prepare_batch(registers: Registers, at: int, start: int, end: int) -> None:
    """Make *registers* run the code at address *at* with the table from *start* to *end*."""
    registers.rip, registers.rbx, registers.rbp = at, start, end
    registers.rax, registers.orig_rax = 0, _WORD  # nothing has failed, nothing to restart


def batch_end(registers: Registers) -> tuple[int, int]:
    """Return the address behind the entry of the last call that was made, and its result."""
    return registers.rbx, result(registers)


# What is put into a running program at a dump. Each way through it ends in rt_sigreturn(2), which
# brings the program back to where it was, or, in the two processes that copy() makes, in
# exit_group(2): so nothing is left half done if the tracer is killed anywhere in between.
CALL: Final = 0
"""Offset of: one system call, then return to the program."""
RETURN: Final = 2
"""Offset of: return to the program."""
COPY: Final = 16
"""Offset of: clone a temporary process that makes the copy; wait for it; return to the program."""
_COPY_TEMPORARY: Final = 51
"""Offset of the clone by which the temporary process makes the copy."""
COPY_EXIT: Final = 53
"""Offset of: exit_group(0)."""
INJECTED_CODE: Final = bytes.fromhex(
    "0f05"  # 0  call: syscall
    "b80f000000"  # 2  return: mov $rt_sigreturn, %eax
    "0f05"  # 7  syscall
    "90909090909090"
    "0f05"  # 16 copy: syscall (clone)
    "85c0"  # 18 test %eax, %eax
    "7415"  # 20 jz temporary
    "89c7"  # 22 mov %eax, %edi
    "31f6"  # 24 xor %esi, %esi
    "ba00000040"  # 26 mov $__WALL, %edx
    "4531d2"  # 31 xor %r10d, %r10d
    "b83d000000"  # 34 mov $wait4, %eax
    "0f05"  # 39 syscall
    "ebd7"  # 41 jmp return
    "4c89e7"  # 43 temporary: mov %r12, %rdi (flags of the copy)
    "b838000000"  # 46 mov $clone, %eax
    "0f05"  # 51 syscall
    "b8e7000000"  # 53 mov $exit_group, %eax
    "31ff"  # 58 xor %edi, %edi
    "0f05"  # 60 syscall
)


def prepare_return(registers: Registers, returner: int, stack: int) -> None:
    """Make *registers* return by the frame for which return_frame() gave *stack*."""
    registers.rip, registers.rsp = returner, stack
    registers.orig_rax = (1 << 64) - 1


def prepare_copy(registers: Registers, area: int, temporary_flags: int, copy_flags: int) -> None:
    """Make *registers* clone the temporary process; the flags are those of clone(2)."""
    prepare_call(registers, area + COPY, SYSCALLS["clone"], (temporary_flags, 0, 0, 0, 0))
    registers.r12 = copy_flags


def prepare_copy_by(registers: Registers, area: int, copy_flags: int) -> None:
    """Make *registers*, of the temporary process, clone the copy."""
    prepare_call(registers, area + _COPY_TEMPORARY, SYSCALLS["clone"], (copy_flags, 0, 0, 0, 0))


CALL_AND_RET: Final = b"\x0f\x05\xc3"
"""`syscall; ret`, which every libc and every runtime has somewhere."""

RETURNERS: Final = (
    bytes.fromhex("48c7c00f0000000f05"),  # mov $rt_sigreturn, %rax; syscall: glibc, Go
    bytes.fromhex("b80f0000000f05"),  # mov $rt_sigreturn, %eax; syscall
)
"""Code that calls rt_sigreturn(2): where signal handlers return to (SA_RESTORER)."""

# From ucontext.h and sigcontext.h below arch/x86/include/uapi/asm.
_UC_FP_XSTATE, _UC_SIGCONTEXT_SS, _UC_STRICT_RESTORE_SS = 1, 2, 4
_FP_XSTATE_MAGIC1, _FP_XSTATE_MAGIC2 = 0x46505853, 0x46505845
_XSTATE_HEADER: Final = 512
_SW_RESERVED: Final = 464
_UCONTEXT: Final = struct.Struct("<Q QQ QIIQ 18Q 4H 4Q Q 64x Q")
FRAME_MARK: Final = b"checkpoint frame"
"""Stands in each frame, at FRAME_MARK_OFFSET: such a page of the stack was touched by us only."""

FRAME_MARK_OFFSET: Final = 512 - len(FRAME_MARK)
_NO_CHANGE: Final = 0x1234
"""An ss_flags that no kernel knows: sigreturn(2) then leaves the alternate stack alone."""


def return_frame(
    registers: Registers, xstate: bytes, mask: int, at: int, returner: int = 0
) -> tuple[bytes, int]:
    """Return the signal frame from which rt_sigreturn(2) makes *registers* come true.

    Args:
        registers: where to go on; an interrupted system call is repeated.
        xstate: extended state as NT_X86_XSTATE gives it.
        mask: the blocked signals.
        at: address where the frame will stand, a multiple of 64.
        returner: address of code that calls rt_sigreturn(2), to which a `ret` at *at* goes.

    Returns:
        The frame's bytes, and the stack pointer with which to call rt_sigreturn(2).

    Source: arch/x86/kernel/signal_64.c, sys_rt_sigreturn().
    """
    goal = copy(registers)
    if will_restart(goal):
        restart(goal)
    elif needs_restart_block(goal):
        fail_interrupted(goal)  # sigreturn(2) forgets what restart_syscall(2) would need
    fpstate = at + 512
    general = [getattr(goal, name) for name in (
        "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rdi", "rsi", "rbp", "rbx", "rdx",
        "rax", "rcx", "rsp", "rip", "eflags",
    )]  # fmt: skip
    ucontext = _UCONTEXT.pack(
        returner, _UC_FP_XSTATE | _UC_SIGCONTEXT_SS | _UC_STRICT_RESTORE_SS, 0,
        0, _NO_CHANGE, 0, 0,
        *general,
        goal.cs & 0xFFFF, 0, 0, goal.ss & 0xFFFF,
        0, 0, 0, 0,
        fpstate,
        mask,
    )  # fmt: skip
    head = ucontext.ljust(512 - len(FRAME_MARK), b"\0") + FRAME_MARK
    return head + _signal_xstate(xstate), at + 8


def _signal_xstate(xstate: bytes) -> bytes:
    """Return *xstate* in the form that a signal frame has (struct _xstate)."""
    features = struct.unpack_from("<Q", xstate, _SW_RESERVED)[0]
    marked = bytearray(xstate)
    struct.pack_into("<IIQI", marked, _SW_RESERVED, _FP_XSTATE_MAGIC1, len(xstate) + 4, features,
                     len(xstate))  # fmt: skip
    return bytes(marked) + struct.pack("<I", _FP_XSTATE_MAGIC2)


def fit_xstate(state: bytes, here: bytes) -> bytes:
    """Return *state* in the size of *here*, the state of a thread on this processor.

    What this processor does not have is left out; the program does not use it, for its features
    were compared. Source: Intel SDM volume 1, 13.4, "XSAVE area".
    """
    fitted = bytearray(state[: len(here)].ljust(len(here), b"\0"))
    (known,) = struct.unpack_from("<Q", here, _SW_RESERVED)
    (used,) = struct.unpack_from("<Q", fitted, _XSTATE_HEADER)
    struct.pack_into("<Q", fitted, _XSTATE_HEADER, used & known)
    return bytes(fitted)


def jump(to: int) -> bytes:
    """Return instructions that jump to *to* and clobber only %r11, as a call of a function may."""
    return b"\x49\xbb" + struct.pack("<Q", to) + b"\x41\xff\xe3"  # movabs $to, %r11; jmp *%r11


VDSO_CALLS: Final[dict[str, bytes]] = {
    # Asked for the size of its state, it says that there is none to be had, and libc then makes
    # the system call itself. Source: lib/vdso/getrandom.c, __cvdso_getrandom_data().
    "getrandom": bytes.fromhex(
        "4983f8ff"  # cmp $-1, %r8 (the size of the state: a question)
        "7408"  # je unknown
        "b83e010000"  # mov $getrandom, %eax
        "0f05"  # syscall
        "c3"  # ret
        "48c7c0daffffff"  # unknown: mov $-ENOSYS, %rax
        "c3"  # ret
    ),
}
"""What can stand for a function that a kernel's vDSO lacks, by the function's name."""

VDSO_ALONE: Final = frozenset(
    {
        "sgx_enter_enclave",
        "futex_robust_list32_try_unlock",
        "futex_robust_list64_try_unlock",
    }
)
"""Functions whose code reads nothing that only their own kernel keeps: it works under any."""
