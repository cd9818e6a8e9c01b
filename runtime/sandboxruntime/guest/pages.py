"""Memory that a fork is about to write, copied ahead.

Sources: proc_pid_pagemap(5), madvise(2), process_madvise(2).

After a fork every first write to a page costs a fault and a copy, and once the process has
threads each also interrupts the other processors. A rehearsal learns which pages a start touches;
a later child has them copied in one go, while it waits for its orders anyway.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

__all__ = ["Populator", "Runs", "mapped", "touched"]

MADV_POPULATE_READ, MADV_POPULATE_WRITE = 22, 23  # Linux 5.14
PRESENT, SHARED_OR_FILE, EXCLUSIVE = 1 << 63, 1 << 61, 1 << 56
NR_PROCESS_MADVISE, IOV_MAX = 440, 1024  # the number is the same on every architecture

_libc = ctypes.CDLL(None, use_errno=True)
_madvise = _libc["madvise"]
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

_syscall = _libc["syscall"]
_syscall.restype = ctypes.c_long


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


@dataclass(frozen=True, slots=True)
class Runs:
    """Address ranges, (start, length) in bytes: those that are written and those that are read."""

    written: tuple[tuple[int, int], ...] = ()
    read: tuple[tuple[int, int], ...] = ()


def mapped() -> list[tuple[int, int, bool]]:
    """Every mapping of this process that a fork inherits: start, end, whether it is writable."""
    found = []
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as stream:
        for line in stream:
            span, modes = line.split(" ", 2)[:2]
            if modes[0] == "r" and modes[3] == "p" and "[v" not in line:
                start, end = (int(part, 16) for part in span.split("-"))
                found.append((start, end, modes[1] == "w"))
    return found


def touched(inherited: list[tuple[int, int, bool]]) -> Runs:
    """Which inherited pages this process has copied, and which of files it has looked at."""
    written: list[int] = []
    read: list[int] = []
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for start, end, writable in inherited:
            count = (end - start) // mmap.PAGESIZE
            data = os.pread(fd, count * 8, start // mmap.PAGESIZE * 8)
            for index, (entry,) in enumerate(struct.iter_unpack("Q", data)):
                if not entry & PRESENT:
                    continue
                page = start + index * mmap.PAGESIZE
                if entry & SHARED_OR_FILE:
                    if not writable:
                        read.append(page)
                elif entry & EXCLUSIVE and writable:
                    written.append(page)
    finally:
        os.close(fd)
    return Runs(_runs(written), _runs(read))


def _runs(pages: list[int]) -> tuple[tuple[int, int], ...]:
    """Neighbouring pages as runs. Pure."""
    if not pages:
        return ()
    starts, ends = [pages[0]], []
    for page, following in pairwise(pages):
        if following - page > mmap.PAGESIZE:
            ends.append(page)
            starts.append(following)
    ends.append(pages[-1])
    return tuple((s, e + mmap.PAGESIZE - s) for s, e in zip(starts, ends, strict=True))


class Populator:
    """Has the pages of runs copied and mapped. Made in the zygote, used in its children."""

    def __init__(self, runs: Runs) -> None:
        self._calls = [
            (advice, (_Iovec * len(part))(*(_Iovec(*each) for each in part)), _total(part))
            for advice, ranges in (
                (MADV_POPULATE_WRITE, runs.written), (MADV_POPULATE_READ, runs.read)
            )
            for part in (ranges[i : i + IOV_MAX] for i in range(0, len(ranges), IOV_MAX))
        ]  # fmt: skip

    def __call__(self) -> None:
        """Now, in this process. Where Linux cannot, they come one by one as always."""
        try:
            pidfd = os.pidfd_open(os.getpid())
        except OSError:
            return
        for advice, vector, total in self._calls:
            done = _syscall(
                NR_PROCESS_MADVISE, ctypes.c_long(pidfd), ctypes.byref(vector),
                ctypes.c_long(len(vector)), ctypes.c_long(advice), ctypes.c_long(0),
            )  # fmt: skip
            # Before Linux 6.13 it takes no such advice; and it stops at a range that is unmapped.
            if done != total and not _advise_each(advice, vector):
                break
        os.close(pidfd)


def _total(ranges: tuple[tuple[int, int], ...]) -> int:
    return sum(length for _, length in ranges)


def _advise_each(advice: int, vector: Any) -> bool:
    """One range per call. False where Linux does not know the advice (before 5.14)."""
    for each in vector:
        if _madvise(each.base, each.length, advice) and ctypes.get_errno() == errno.EINVAL:
            return False
    return True
