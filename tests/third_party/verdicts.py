"""What different programs say of one seccomp filter: Linux, libpcap, and our own simulator.

Linux is asked without harm: the same program with its answers relabelled, so that no call is made.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import itertools
import mmap
import os
import resource
import signal
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sandboxruntime import syscalls
from sandboxruntime.seccomp import Profile, install
from sandboxruntime.syscall_numbers import NUMBERS
from tests.unit.bpf_simulator import I386, X86_64, simulate

__all__ = [
    "ABIS",
    "LAST_NUMBER",
    "UNFILTERED",
    "X32_BIT",
    "Query",
    "edges",
    "in_libpcap",
    "in_linux",
    "in_our_simulator",
    "named",
    "whole_tables",
]

LAST_NUMBER = 1023
X32_BIT = 0x40000000
# uretprobe (Linux 6.11) and uprobe (6.18): Linux shows them to no filter, since its own return probes
# would end a confined process otherwise. From anywhere but such a probe they end the caller with
# SIGILL, or answer ENXIO (kernel/seccomp.c, seccomp_uprobe_exception).
UNFILTERED = frozenset({335, 336})
ABIS = {"x86_64": X86_64, "x32": X86_64, "i386": I386}
_PR_SET_NO_NEW_PRIVS = 38
_RETURN, _ALLOW, _KILL_PROCESS, _ERRNO = 0x06, 0x7FFF0000, 0x80000000, 0x00050000
_ALLOWED, _KILLED = 4094, 4093  # no errno of Linux's, and not above its MAX_ERRNO
_U64 = (1 << 64) - 1
_SYSCALL, _INT80 = b"\x0f\x05", b"\xcd\x80"
# rdi: seven words for each call; rsi: where answers go; rdx: how many. It ends with an illegal
# instruction, because the filter refuses exit_group, too.
_LOOP = (
    b"\x49\x89\xfc\x49\x89\xf5\x49\x89\xd6"  # mov r12, rdi; mov r13, rsi; mov r14, rdx
    b"\x49\x8b\x04\x24\x49\x8b\x7c\x24\x08"  # 1: mov rax, [r12]; mov rdi, [r12+8]
    b"\x49\x8b\x74\x24\x10\x49\x8b\x54\x24\x18"  # mov rsi, [r12+16]; mov rdx, [r12+24]
    b"\x4d\x8b\x54\x24\x20\x4d\x8b\x44\x24\x28"  # mov r10, [r12+32]; mov r8, [r12+40]
    b"\x4d\x8b\x4c\x24\x30%b"  # mov r9, [r12+48]; the call
    b"\x49\x89\x45\x00\x49\x83\xc4\x38\x49\x83\xc5\x08"  # mov [r13], rax; add r12, 56; add r13, 8
    b"\x49\xff\xce\x75\xcb\x0f\x0b"  # dec r14; jnz 1b; ud2
)


@dataclass(frozen=True, slots=True)
class Query:
    """One system call, as a filter sees it."""

    abi: str
    number: int
    args: tuple[int, ...] = ()

    def words(self) -> tuple[int, ...]:
        """Number and six arguments, as registers have them."""
        padded = (*self.args, *[0] * (6 - len(self.args)))
        return (self.number, *(value & _U64 for value in padded))


def whole_tables() -> Iterator[Query]:
    """Every number of every table of x86's and some above them, but those that Linux never filters."""
    for abi in ABIS:
        for number in range(LAST_NUMBER + 1):
            if abi == "x86_64" and number in UNFILTERED:
                continue
            yield Query(abi, number | X32_BIT if abi == "x32" else number)


def edges(profile: Profile) -> Iterator[Query]:
    """For each call whose arguments a profile inspects: values at and beside what it looks for."""
    for name, rules in profile.calls.items():
        if name not in NUMBERS["x86_64"]:
            continue
        values: dict[int, set[int]] = {}
        for condition in (each for rule in rules for each in rule.when):
            found = values.setdefault(condition.arg, {0, 0xFFFFFFFF, 1 << 32})
            bits = [1 << bit for bit in range(32) if condition.any_bits >> bit & 1]
            for value in (*condition.values, *bits, condition.any_bits):
                found |= {value, value + 1, value | 1 << 32, (value | ~condition.mask) & 0xFFFFFFFF}
        if values:
            arguments = [sorted(values.get(number, {0})) for number in range(max(values) + 1)]
            for chosen in itertools.product(*arguments):
                yield Query("x86_64", NUMBERS["x86_64"][name], chosen)


def named(action: int) -> str:
    """A SECCOMP_RET_* value in a word."""
    if action == _ALLOW:
        return "allow"
    if action == _KILL_PROCESS:
        return "kill"
    if action & 0xFFFF0000 == _ERRNO:
        return errno.errorcode[action & 0xFFFF]
    raise ValueError(f"no answer of ours: {action:#x}")


def in_our_simulator(program: bytes, queries: Iterable[Query]) -> list[str]:
    """By tests/unit/bpf_simulator.py."""
    return [
        named(simulate(program, each.number, each.args, arch=ABIS[each.abi]).value)
        for each in queries
    ]


def in_libpcap(program: bytes, queries: Iterable[Query]) -> list[str]:
    """By bpf_filter(3) of libpcap, which reads words of the network's byte order.

    Raises FileNotFoundError where there is no libpcap.
    """
    name = ctypes.util.find_library("pcap")
    if name is None:
        raise FileNotFoundError("no libpcap: make third-party")
    evaluate = ctypes.CDLL(name).bpf_filter
    evaluate.restype = ctypes.c_uint
    found = []
    for each in queries:
        number, *arguments = each.words()
        data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, ABIS[each.abi], 0, *arguments)
        swapped = struct.pack(">16I", *struct.unpack("<16I", data))
        found.append(named(evaluate(program, swapped, len(swapped), len(swapped))))
    return found


def in_linux(program: bytes, queries: Sequence[Query]) -> list[str]:
    """By Linux, in children that install the program with its answers relabelled. x86-64 only."""
    relabelled = _relabelled(program)
    answers: dict[int, str] = {}
    for entry, abis in ((_SYSCALL, ("x86_64", "x32")), (_INT80, ("i386",))):
        chosen = [index for index, each in enumerate(queries) if each.abi in abis]
        if chosen:
            said = _asked(relabelled, entry, [queries[index] for index in chosen])
            answers |= dict(zip(chosen, said, strict=True))
    return [answers[index] for index in range(len(queries))]


def _relabelled(program: bytes) -> bytes:
    others = {_ALLOW: _ERRNO | _ALLOWED, _KILL_PROCESS: _ERRNO | _KILLED}
    return b"".join(
        struct.pack("<HBBI", code, true, false, others.get(k, k) if code == _RETURN else k)
        for code, true, false, k in struct.iter_unpack("<HBBI", program)
    )


def _asked(program: bytes, entry: bytes, queries: Sequence[Query]) -> list[str]:
    calls = b"".join(struct.pack("<7Q", *each.words()) for each in queries)
    shared = mmap.mmap(-1, 8 * len(queries))
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGILL, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(_LOOP % entry)
        kind = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
        run = kind(ctypes.addressof(ctypes.c_char.from_buffer(code)))
        address = ctypes.addressof(ctypes.c_char.from_buffer(shared))
        syscalls.prctl(_PR_SET_NO_NEW_PRIVS, 1)
        install(program)
        run(calls, address, len(queries))
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGILL:
        raise RuntimeError(f"the child that asks Linux ended with wait status {status}")
    names: Mapping[int, str] = {_ALLOWED: "allow", _KILLED: "kill", **errno.errorcode}
    return [names[-value] for (value,) in struct.iter_unpack("<q", shared[:])]
