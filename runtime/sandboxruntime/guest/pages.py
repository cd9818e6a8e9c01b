"""Memory that a fork is about to write, copied ahead. Source: proc_pid_pagemap(5), madvise(2).

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

__all__ = ["Runs", "mapped", "populate", "touched"]

MADV_POPULATE_READ, MADV_POPULATE_WRITE = 22, 23  # Linux 5.14
PRESENT, SHARED_OR_FILE, EXCLUSIVE = 1 << 63, 1 << 61, 1 << 56
GAP_PAGES = 2  # neighbours so near are copied along: cheaper than one more call

_madvise = ctypes.CDLL(None, use_errno=True)["madvise"]
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


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
        if following - page > (GAP_PAGES + 1) * mmap.PAGESIZE:
            ends.append(page)
            starts.append(following)
    ends.append(pages[-1])
    return tuple((s, e + mmap.PAGESIZE - s) for s, e in zip(starts, ends, strict=True))


def populate(runs: Runs) -> None:
    """Have the pages copied and mapped now. Where Linux cannot, they come one by one as always."""
    for advice, ranges in ((MADV_POPULATE_WRITE, runs.written), (MADV_POPULATE_READ, runs.read)):
        for start, length in ranges:
            if _madvise(start, length, advice) and ctypes.get_errno() == errno.EINVAL:
                return  # Linux before 5.14
