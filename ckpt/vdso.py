"""The kernel's code in every process, the vDSO: is it the same here, and what if it is not. Pure.

A program keeps addresses of vDSO functions (glibc resolves them once), so the restarted program
must find code there. The running kernel's own vDSO is moved to the old place where layout and bytes
agree; else the old bytes stay as ordinary memory in which each exported function begins with a jump
to the running kernel's function of that name, or, where it has none, with a system call that does
the same. A function that needs nothing of the kernel stays what it was.

Source: vdso(7); elf(5); arch/x86/entry/vdso/vdso.lds.S.
"""

import struct
from collections.abc import Sequence

from ckpt.arch import x86_64 as arch
from ckpt.kinds.memory import Special

_DYNAMIC, _DT_NULL = 2, 0
_DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_GNU_HASH = 4, 5, 6, 0x6FFF_FEF5
_SYMBOL = struct.Struct("<IBBHQQ")
_STT_FUNC = 2


def same(
    old: Sequence[Special], old_image: bytes, new: Sequence[Special], new_image: bytes
) -> bool:
    """Can the new mappings stand for the old ones, each moved by the same distance?"""
    return old_image == new_image and _shape(old) == _shape(new)


def _shape(specials: Sequence[Special]) -> list[tuple[str, int, int]]:
    base = specials[0].start if specials else 0
    return [(s.name, s.start - base, s.end - s.start) for s in specials]


def redirect(old_image: bytes, new_image: bytes, new_start: int) -> bytes:
    """Return *old_image* with its functions redirected to the vDSO at address *new_start*.

    Raises:
        ValueError: the new one lacks a function that nothing can stand for, or a function is too
            short for what is to stand there.
    """
    patched, functions = bytearray(old_image), symbols(new_image)
    for name, (offset, size) in symbols(old_image).items():
        plain = name.removeprefix("__vdso_")
        if name in functions:
            code = arch.jump(new_start + functions[name][0])
        elif plain in arch.VDSO_ALONE:
            continue
        elif plain in arch.VDSO_CALLS:
            code = arch.VDSO_CALLS[plain]
        else:
            raise ValueError(f"this kernel's vDSO has no function {name}")
        if 0 < size < len(code):
            raise ValueError(f"{name} in the old vDSO is too short to be redirected")
        patched[offset : offset + len(code)] = code
    return bytes(patched)


def symbols(image: bytes) -> dict[str, tuple[int, int]]:
    """Return offset and size of each exported function of a vDSO's ELF image.

    The image is mapped from its first byte, so that addresses in it are offsets.
    """
    table = _dynamic(image)
    count = (_DT_HASH in table and struct.unpack_from("<I", image, table[_DT_HASH] + 4)[0]) or (
        _count_by_gnu_hash(image, table[_DT_GNU_HASH])
    )
    functions = {}
    for index in range(count):
        at = table[_DT_SYMTAB] + index * _SYMBOL.size
        name, info, _, section, value, size = _SYMBOL.unpack_from(image, at)
        if info & 0xF == _STT_FUNC and section:
            start = table[_DT_STRTAB] + name
            functions[image[start : image.index(b"\0", start)].decode()] = (value, size)
    return functions


def _dynamic(image: bytes) -> dict[int, int]:
    """Return the dynamic section: tag to value."""
    headers = struct.unpack_from("<Q", image, 32)[0]
    size, count = struct.unpack_from("<HH", image, 54)
    for index in range(count):
        kind, _, offset = struct.unpack_from("<IIQ", image, headers + index * size)
        if kind == _DYNAMIC:
            break
    else:
        raise ValueError("the vDSO has no dynamic section")
    table: dict[int, int] = {}
    while True:
        tag, value = struct.unpack_from("<QQ", image, offset)
        if tag == _DT_NULL:
            return table
        table[tag] = value
        offset += 16


def _count_by_gnu_hash(image: bytes, at: int) -> int:
    """Return the number of symbols: one more than the last of the last chain."""
    buckets, first, bloom, _ = struct.unpack_from("<4I", image, at)
    bucket_at = at + 16 + bloom * 8
    chain_at = bucket_at + buckets * 4
    last: int = max(struct.unpack_from(f"<{buckets}I", image, bucket_at), default=0)
    if last < first:
        return int(first)
    while not struct.unpack_from("<I", image, chain_at + (last - first) * 4)[0] & 1:
        last += 1
    return last + 1
