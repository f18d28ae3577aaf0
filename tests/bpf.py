"""Runs a classic BPF program as the kernel would run a seccomp filter (kernel/seccomp.c)."""

import struct


def verdict(program, nr, arch, args=()):
    """Return what *program* (packed struct sock_filter) returns for a system call."""
    data = struct.pack("=iIQ6Q", nr, arch, 0, *[*args, 0, 0, 0, 0, 0, 0][:6])
    code = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        op, jt, jf, k = code[at]
        at += 1
        if op == 0x20:  # LD | W | ABS
            accumulator = struct.unpack_from("=I", data, k)[0]
        elif op == 0x06:  # RET | K
            return k
        elif op == 0x05:  # JMP | JA
            at += k
        elif op == 0x54:  # ALU | AND | K
            accumulator &= k
        elif op in TESTS:
            at += jt if TESTS[op](accumulator, k) else jf
        else:
            raise ValueError(f"unknown instruction {op:#x}")


TESTS = {
    0x15: lambda a, k: a == k,
    0x25: lambda a, k: a > k,
    0x35: lambda a, k: a >= k,
    0x45: lambda a, k: bool(a & k),
}
