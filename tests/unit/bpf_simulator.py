"""A classic BPF interpreter for seccomp programs, written from the manual, not from the compiler.

Source: Linux, Documentation/networking/filter.rst and seccomp(2).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from dataclasses import dataclass

X86_64 = 0xC000003E
AARCH64 = 0xC00000B7
I386 = 0x40000003


@dataclass(frozen=True)
class Action:
    value: int
    steps: int = 0

    def __str__(self) -> str:
        kind = self.value & 0xFFFF0000
        if kind == 0x7FFF0000:
            return "allow"
        if kind == 0x80000000:
            return "kill"
        assert kind == 0x00050000
        return errno.errorcode[self.value & 0xFFFF]


def simulate(
    program: bytes, number: int, args: Sequence[int] = (), *, arch: int = X86_64
) -> Action:
    padded = [*args, *[0] * (6 - len(args))]
    data = struct.pack(
        "<IIQ6Q", number & 0xFFFFFFFF, arch, 0, *[arg & 0xFFFFFFFFFFFFFFFF for arg in padded]
    )
    code = list(struct.iter_unpack("<HBBI", program))
    accumulator = position = steps = 0
    while True:
        operation, jump_true, jump_false, k = code[position]
        position += 1
        steps += 1
        match operation:
            case 0x20:
                assert k % 4 == 0 and k < len(data)
                (accumulator,) = struct.unpack_from("<I", data, k)
            case 0x54:
                accumulator &= k
            case 0x05:
                position += k
            case 0x15:
                position += jump_true if accumulator == k else jump_false
            case 0x25:
                position += jump_true if accumulator > k else jump_false
            case 0x35:
                position += jump_true if accumulator >= k else jump_false
            case 0x45:
                position += jump_true if accumulator & k else jump_false
            case 0x06:
                return Action(k, steps)
            case _:
                raise AssertionError(f"unexpected instruction {operation:#x}")
