"""Our declarations agree with the kernel's headers on this machine."""

import ctypes
import struct
import subprocess

import pytest

from ckpt import abi, userfault
from ckpt.arch import x86_64 as arch

pytestmark = pytest.mark.needs("cc")

HEADERS = [
    "linux/ptrace.h", "linux/elf.h", "linux/sched.h", "linux/sched/types.h", "linux/filter.h",
    "linux/prctl.h", "linux/userfaultfd.h", "linux/time_types.h", "linux/capability.h",
    "asm/unistd.h", "sys/uio.h", "sys/ioctl.h", "signal.h", "stddef.h", "stdio.h", "ucontext.h",
    "sys/user.h",
]  # fmt: skip
STRUCTURES = [
    abi.iovec, abi.ptrace_peeksiginfo_args, abi.ptrace_rseq_configuration, abi.seccomp_metadata,
    abi.sock_filter, abi.prctl_mm_map, abi.clone_args, arch.user_regs_struct,
    abi.uffdio_api, abi.uffdio_range, abi.uffdio_copy,
]  # fmt: skip
CONSTANTS = [
    "PTRACE_CONT", "PTRACE_SINGLESTEP", "PTRACE_DETACH", "PTRACE_SYSCALL", "PTRACE_SETOPTIONS",
    "PTRACE_GETREGSET", "PTRACE_SETREGSET", "PTRACE_SEIZE", "PTRACE_INTERRUPT",
    "PTRACE_PEEKSIGINFO", "PTRACE_GETSIGMASK", "PTRACE_SETSIGMASK", "PTRACE_SECCOMP_GET_FILTER",
    "PTRACE_SECCOMP_GET_METADATA", "PTRACE_GET_RSEQ_CONFIGURATION", "PTRACE_PEEKSIGINFO_SHARED",
    "PTRACE_O_TRACESYSGOOD", "PTRACE_O_EXITKILL", "PTRACE_O_SUSPEND_SECCOMP", "NT_PRSTATUS",
    "NT_X86_XSTATE", "UFFD_API", "UFFD_EVENT_PAGEFAULT", "UFFD_EVENT_FORK", "UFFD_EVENT_REMAP",
    "UFFD_EVENT_REMOVE", "UFFD_EVENT_UNMAP", "UFFD_FEATURE_EVENT_FORK", "UFFD_FEATURE_EVENT_REMAP",
    "UFFD_FEATURE_EVENT_REMOVE", "UFFD_FEATURE_EVENT_UNMAP", "UFFDIO_API", "UFFDIO_REGISTER",
    "UFFDIO_UNREGISTER", "UFFDIO_WAKE", "UFFDIO_COPY", "UFFDIO_ZEROPAGE", "UFFDIO_WRITEPROTECT",
    "UFFDIO_REGISTER_MODE_MISSING", "UFFDIO_REGISTER_MODE_WP", "UFFD_USER_MODE_ONLY",
]  # fmt: skip

# C expression -> our value
FACTS = {name: getattr(abi, name) for name in CONSTANTS}
FACTS |= {f"SYS_{name}".replace("SYS_", "__NR_"): n for name, n in arch.SYSCALLS.items() if n < 450}
for structure in STRUCTURES:
    tag = f"struct {structure.__name__}"
    FACTS[f"sizeof({tag})"] = ctypes.sizeof(structure)
    for name, *_ in structure._fields_:
        FACTS[f"offsetof({tag}, {name})"] = getattr(structure, name).offset
for structure in (abi.uffdio_register, abi.uffdio_writeprotect, abi.uffdio_zeropage):
    FACTS[f"sizeof(struct {structure.__name__})"] = ctypes.sizeof(structure)
FACTS["sizeof(struct uffd_msg)"] = userfault.MESSAGE.size
FACTS["offsetof(struct uffd_msg, arg.pagefault.address)"] = 16
FACTS["offsetof(struct uffd_msg, arg.remap.to)"] = 16
FACTS["sizeof(siginfo_t)"] = abi.SIGINFO_BYTES


@pytest.fixture(scope="module")
def from_headers(tmp_path_factory):
    lines = [f"#include <{header}>" for header in HEADERS]
    lines += ["int main(void) {"]
    lines += [f'printf("%lld\\n", (long long)({expression}));' for expression in FACTS]
    source = tmp_path_factory.mktemp("abi") / "abi.c"
    source.write_text("\n".join([*lines, "}"]))
    subprocess.run(["cc", "-o", source.with_suffix(""), source], check=True)
    output = subprocess.check_output([source.with_suffix("")], text=True)
    return dict(zip(FACTS, map(int, output.split()), strict=True))


def test_matches_headers(from_headers):
    assert from_headers == FACTS


def test_injected_code():
    """The offsets are those of the instructions that the comments name."""
    code = arch.INJECTED_CODE
    for offset in (arch.CALL, arch.COPY, arch._COPY_TEMPORARY):
        assert code[offset : offset + 2] == arch.SYSCALL_INSTRUCTION
    assert code[arch.RETURN] == 0xB8
    assert struct.unpack_from("<I", code, arch.RETURN + 1)[0] == arch.SYSCALLS["rt_sigreturn"]
    assert code[arch.COPY_EXIT] == 0xB8
    assert struct.unpack_from("<I", code, arch.COPY_EXIT + 1)[0] == arch.SYSCALLS["exit_group"]
