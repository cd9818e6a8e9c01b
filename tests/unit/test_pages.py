"""Memory of a zygote's children: what is copied ahead, in parts, and what tables they inherit."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxruntime.guest import pages
from sandboxruntime.guest.pages import Populator, Runs, mapped, share_tables, touched

PAGES = 64


@pytest.fixture
def memory() -> int:
    """The address of so many pages of this process, written to; for good, they are few."""
    area = mmap.mmap(-1, PAGES * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.write(b"x" * len(area))
    _kept.append(area)
    return ctypes.addressof(ctypes.c_char.from_buffer(area))


_kept: list[mmap.mmap] = []


def in_child(work: Callable[[], int]) -> int:
    """What `work` returns in a fork, up to 255."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def copied(start: int, count: int) -> int:
    """How many pages of a range this process has copied."""
    runs = touched([(start, start + count * mmap.PAGESIZE, True)])
    return sum(length for _, length in runs.written) // mmap.PAGESIZE


def every_second(start: int) -> Runs:
    return Runs(tuple((start + n * mmap.PAGESIZE, mmap.PAGESIZE) for n in range(0, PAGES, 2)))


def test_pages_are_copied_in_parts_as_long_as_there_is_nothing_else_to_do(
    memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PART", 8)
    populator = Populator(every_second(memory))

    def work() -> int:
        asked = iter((False, False, True))
        populator.go_on(until=lambda: next(asked))
        return copied(memory, PAGES)

    assert in_child(work) == 16


@pytest.mark.parametrize("finish", [lambda p: p.finish(), lambda p: p.go_on(lambda: False)])
def test_what_is_left_is_copied_in_the_end(
    memory: int, finish: Callable[[Populator], None]
) -> None:
    populator = Populator(every_second(memory))

    def work() -> int:
        populator.go_on(until=lambda: True)
        if copied(memory, PAGES):
            return 254
        finish(populator)
        return copied(memory, PAGES)

    assert in_child(work) == PAGES // 2


def test_a_range_that_is_gone_is_no_error(memory: int) -> None:
    populator = Populator(Runs(((memory, mmap.PAGESIZE), (1 << 40, mmap.PAGESIZE))))

    def work() -> int:
        populator.finish()
        return copied(memory, PAGES)

    assert in_child(work) == 1


def present(start: int, count: int) -> int:
    """How many pages of a range are in this process's page table. proc_pid_pagemap(5)."""
    with open("/proc/self/pagemap", "rb") as stream:
        stream.seek(start // mmap.PAGESIZE * 8)
        entries = struct.unpack(f"{count}Q", stream.read(count * 8))
    return sum(bool(entry & pages.PRESENT) for entry in entries)


def test_a_fork_inherits_the_pages_of_files_that_nobody_looks_at(tmp_path: Path) -> None:
    path = tmp_path / "library"
    path.write_bytes(b"x" * PAGES * mmap.PAGESIZE)
    with path.open("rb") as stream:
        area = mmap.mmap(
            stream.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC
        )
    _kept.append(area)
    start = next(begin for begin, end, _ in mapped() if _file_at(begin) == str(path))
    runs = ((start, PAGES * mmap.PAGESIZE),)

    for begin, length in runs:  # looked at by the parent alone: the control
        assert length == len(area[:])
        assert present(begin, PAGES) == PAGES
    assert in_child(lambda: present(start, PAGES)) == 0

    assert share_tables(runs)
    assert in_child(lambda: present(start, PAGES)) == PAGES
    assert area[:] == path.read_bytes()


def _file_at(address: int) -> str:
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(None, 5)
        if int(fields[0].split("-")[0], 16) == address and len(fields) == 6:
            return fields[5]
    return ""
