"""What of this machine a restart elsewhere must know."""

import os
from typing import Final

from ckpt.archive.schema import Host

_X86_FEATURES: Final = """
3dnow 3dnowext abm adx aes amx_bf16 amx_complex amx_fp16 amx_int8 amx_tile avx avx2 avx512_4fmaps
avx512_4vnniw avx512_bf16 avx512_bitalg avx512_fp16 avx512_vbmi2 avx512_vnni avx512_vp2intersect
avx512_vpopcntdq avx512bw avx512cd avx512dq avx512er avx512f avx512ifma avx512pf avx512vbmi
avx512vl avx_ifma avx_ne_convert avx_vnni avx_vnni_int16 avx_vnni_int8 bmi1 bmi2 cldemote clflush
clflushopt clwb clzero cmov cmpccxadd cx16 cx8 enqcmd erms f16c fma fma4 fsgsbase fsrm fxsr gfni
lahf_lm lzcnt mmx mmxext monitorx movbe movdir64b movdiri mwaitx ospke pclmulqdq pku pni popcnt
prefetchi prefetchw rdpid rdpru rdrand rdseed rdtscp rtm serialize sha512 sha_ni shstk sm3 sm4 sse
sse2 sse4_1 sse4_2 sse4a ssse3 tbm user_shstk vaes vpclmulqdq waitpkg xgetbv1 xop xsave xsavec
xsaveopt
"""
"""Flags of instructions that user mode can execute, under the names of Linux
(arch/x86/include/asm/cpufeatures.h, v6.18): what a program may have found by CPUID at its start
and goes on using. The other flags are the kernel's business."""


def describe() -> Host:
    """Return this machine."""
    names = os.uname()
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        return Host(names.release, names.machine, cpu_features(file.read(), names.machine))


def cpu_features(cpuinfo: str, machine: str) -> list[str]:
    """Return the features of the first CPU in the text of /proc/cpuinfo, sorted. Pure.

    On x86 those that programs choose their code by; elsewhere all, for there the kernel shows only
    such (arm64's "Features": Documentation/arch/arm64/elf_hwcaps.rst).
    """
    key = "flags" if machine == "x86_64" else "Features"
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            flags = set(value.split())
            return sorted(flags & set(_X86_FEATURES.split()) if key == "flags" else flags)
    return []


def missing(recorded: Host) -> list[str]:
    """Return what stands against running programs of *recorded* here, as clauses; [] if nothing."""
    here = describe()
    if recorded.architecture != here.architecture:
        return [f"it was taken on {recorded.architecture}, this is {here.architecture}"]
    lacking = sorted(set(recorded.cpu_features) - set(here.cpu_features))
    return [f"this CPU lacks {', '.join(lacking)}"] if lacking else []
