import ctypes
import errno
import mmap
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt import procfs, vdso
from ckpt.arch import x86_64 as arch
from ckpt.embryo import find_hole
from ckpt.kinds import memory
from ckpt.kinds.memory import Special
from ckpt.tracee import Memory

PAGE = 4096


@given(
    st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 300)), max_size=30),
    st.integers(1, 500),
)
def test_find_hole(ranges, pages):
    ranges = [(start * PAGE, (start + length) * PAGE) for start, length in ranges]
    at = find_hole(ranges, pages * PAGE)
    assert at >= 1 << 20
    assert all(end <= at or start >= at + pages * PAGE for start, end in ranges)


@pytest.fixture(scope="module")
def own_vdso():
    mappings = procfs.parse_maps(procfs.read_bytes(os.getpid(), "maps"))
    (mapping,) = (m for m in mappings if m.name == b"[vdso]")
    with Memory(os.getpid()) as own:
        return own.read(mapping.start, mapping.end - mapping.start)


def test_vdso_symbols(own_vdso):
    symbols = vdso.symbols(own_vdso)
    assert {"__vdso_clock_gettime", "__vdso_gettimeofday", "__vdso_getcpu"} <= symbols.keys()
    assert all(0 < offset < len(own_vdso) for offset, _ in symbols.values())


def test_vdso_is_redirected(own_vdso):
    redirected = vdso.redirect(own_vdso, own_vdso, 0x7000_0000_0000)
    offset, _ = vdso.symbols(own_vdso)["__vdso_getcpu"]
    code = arch.jump(0x7000_0000_0000 + offset)
    assert redirected[offset : offset + len(code)] == code
    assert len(redirected) == len(own_vdso)
    assert vdso.symbols(redirected) == vdso.symbols(own_vdso)


def test_vdso_function_that_this_kernel_lacks(own_vdso):
    old = own_vdso.replace(b"__vdso_gettimeofday\0", b"__vdso_getrandom\0\0\0\0")
    new = own_vdso.replace(b"getrandom\0", b"get_other\0")
    offset, _ = vdso.symbols(old)["__vdso_getrandom"]
    stub = arch.VDSO_CALLS["getrandom"]
    assert vdso.redirect(old, new, 0x7000_0000_0000)[offset : offset + len(stub)] == stub
    strange = own_vdso.replace(b"__vdso_gettimeofday\0", b"__vdso_unheard_of\0\0\0")
    with pytest.raises(ValueError, match="no function __vdso_unheard_of"):
        vdso.redirect(strange, own_vdso, 0x7000_0000_0000)


def test_getrandom_without_vdso():
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(arch.VDSO_CALLS["getrandom"])
    at = ctypes.addressof(ctypes.c_char.from_buffer(code))
    sizes = (ctypes.c_size_t, ctypes.c_uint, ctypes.c_void_p, ctypes.c_size_t)
    getrandom = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, *sizes)(at)
    buffer = ctypes.create_string_buffer(64)
    assert getrandom(ctypes.addressof(buffer), 64, 0, None, 144) == 64
    assert buffer.raw != bytes(64)
    assert getrandom(ctypes.addressof(buffer), 64, 0xFFFF, None, 144) == -errno.EINVAL
    state = ctypes.c_size_t(-1).value  # "how large is a state?"
    assert getrandom(None, 0, 0, ctypes.addressof(buffer), state) == -errno.ENOSYS


def test_vdso_of_another_layout(own_vdso):
    old = [Special("vvar", 0x1000, 0x5000), Special("vdso", 0x5000, 0x7000)]
    moved = [Special("vvar", 0x91000, 0x95000), Special("vdso", 0x95000, 0x97000)]
    longer = [Special("vvar", 0x91000, 0x96000), Special("vdso", 0x96000, 0x98000)]
    assert vdso.same(old, own_vdso, moved, own_vdso)
    assert not vdso.same(old, own_vdso, longer, own_vdso)
    assert not vdso.same(old, own_vdso, moved, own_vdso[:-1] + b"x")


def test_refused_mappings():
    text = b"""\
1000-2000 rw-s 00000000 00:01 7 /SYSV00000000 (deleted)
VmFlags: rd wr ht
2000-3000 rw-p 00000000 00:01 8 /anon_hugepage (deleted)
VmFlags: rd wr ht
3000-4000 rw-s 00000000 00:01 4 /[aio] (deleted)
VmFlags: rd wr
5000-6000 rw-p 00000000 00:00 0 [heap]
VmFlags: rd wr
"""
    found = list(memory.refusals(procfs.parse_smaps(text)))
    assert found == [
        (
            "mapping 1000-2000 /SYSV00000000 (deleted)",
            "it is System V shared memory of huge pages (SHM_HUGETLB)",
        ),
        ("mapping 3000-4000 /[aio] (deleted)", "it is a context of io_setup(2)"),
    ]
