"""The device allow-list of cgroup v2: a BPF program. assemble() is pure; the rest are effects.

v2 has no devices controller: programs that are attached to a cgroup are asked whenever a device is
opened or a node made in it, and all of them must agree, those above included. An attached program
needs no descriptor and goes with its cgroup. Sources: bpf(2); Linux, include/uapi/linux/bpf.h and
Documentation/admin-guide/cgroup-v2.rst, "Device controller".
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Sequence
from typing import Final

from sandboxruntime import syscalls

__all__ = ["ALLOWED", "PROGRAM_NAME", "assemble", "attach", "attached", "is_supported"]

# null, zero, full, random, urandom, tty, ptmx, and the pseudo-terminals themselves (every minor):
# character devices, to be read and written. Device nodes are made by the launcher, never inside.
ALLOWED: Final[tuple[tuple[int, int | None], ...]] = (
    (1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, None),
)  # fmt: skip
PROGRAM_NAME: Final = "sandboxkernel"
_PROG_TYPE_CGROUP_DEVICE, _ATTACH_CGROUP_DEVICE = 15, 6
_F_ALLOW_MULTI: Final = 1 << 1
_DEVCG_ACC_MKNOD, _DEVCG_DEV_CHAR = 1, 2
# struct bpf_cgroup_dev_ctx: access_type (the access above 16 bits of the type), major, minor.
_CTX_ACCESS_TYPE, _CTX_MAJOR, _CTX_MINOR = 0, 4, 8
# Opcodes (Linux, Documentation/bpf/standardization/instruction-set.rst).
_LDX_W, _MOV, _MOV_X, _AND, _RSH = 0x61, 0xB7, 0xBF, 0x57, 0x77
_JEQ, _JNE, _JSET, _EXIT = 0x15, 0x55, 0x45, 0x95


def assemble(allowed: Sequence[tuple[int, int | None]] = ALLOWED) -> bytes:
    """A program that answers 1 for reading and writing these character devices, else 0. Pure."""
    tests: list[tuple[int, int, int, int]] = []  # opcode, registers, jump if not 0, immediate
    deny, allow = -1, -2
    tests += [
        (_LDX_W, 0x12, _CTX_ACCESS_TYPE, 0),  # r2 = access and type
        (_MOV_X, 0x23, 0, 0),  # r3 = r2
        (_AND, 0x02, 0, 0xFFFF),
        (_RSH, 0x03, 0, 16),
        (_JNE, 0x02, deny, _DEVCG_DEV_CHAR),
        (_JSET, 0x03, deny, _DEVCG_ACC_MKNOD),
        (_LDX_W, 0x14, _CTX_MAJOR, 0),  # r4
        (_LDX_W, 0x15, _CTX_MINOR, 0),  # r5
    ]
    for major, minor in allowed:
        if minor is None:
            tests.append((_JEQ, 0x04, allow, major))
        else:
            tests += [(_JNE, 0x04, 1, major), (_JEQ, 0x05, allow, minor)]
    places = {deny: len(tests), allow: len(tests) + 2}
    tests += [(_MOV, 0x00, 0, 0), (_EXIT, 0, 0, 0), (_MOV, 0x00, 0, 1), (_EXIT, 0, 0, 0)]
    code = b""
    for index, (opcode, registers, offset, immediate) in enumerate(tests):
        jump = places[offset] - index - 1 if offset in places else offset
        code += struct.pack("<BBhi", opcode, registers, jump, immediate)
    return code


@functools.cache
def _program() -> int:
    """A descriptor of the program, kept: one program serves every cgroup. Raises OSError."""
    return syscalls.bpf_prog_load(
        _PROG_TYPE_CGROUP_DEVICE, _ATTACH_CGROUP_DEVICE, assemble(), PROGRAM_NAME
    )


def is_supported() -> bool:
    """Whether this Linux takes such a program from this process (CONFIG_CGROUP_BPF)."""
    try:
        _program()
    except OSError:
        return False
    return True


def attach(directory: str) -> None:
    """Attach the program to a cgroup, beside what is there. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.bpf_prog_attach(fd, _program(), _ATTACH_CGROUP_DEVICE, _F_ALLOW_MULTI)
    finally:
        os.close(fd)


def attached(directory: str) -> list[str]:
    """The names of the device programs of a cgroup itself. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        ids = syscalls.bpf_prog_query(fd, _ATTACH_CGROUP_DEVICE)
    finally:
        os.close(fd)
    return [syscalls.bpf_prog_name(prog_id) for prog_id in ids]
