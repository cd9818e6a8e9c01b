"""Memory of a zygote's children that is copied ahead."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable

import pytest

from sandboxruntime.guest import pages
from sandboxruntime.guest.pages import Populator, Runs, touched

PAGES = 64
_kept: list[mmap.mmap] = []


@pytest.fixture
def memory() -> int:
    """The address of so many pages of this process, written to; for good, they are few."""
    area = mmap.mmap(-1, PAGES * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.write(b"x" * len(area))
    _kept.append(area)
    return ctypes.addressof(ctypes.c_char.from_buffer(area))


def copied_in_fork(start: int, work: Callable[[], None]) -> int:
    """How many of those pages a fork has copied once it has done some work; 255 if that failed."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            work()
            runs = touched([(start, start + PAGES * mmap.PAGESIZE, True)])
            code = sum(length for _, length in runs.written) // mmap.PAGESIZE
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_exactly_the_pages_of_the_runs_are_copied(memory: int) -> None:
    every_second = range(memory, memory + PAGES * mmap.PAGESIZE, 2 * mmap.PAGESIZE)
    populate = Populator(Runs(tuple((start, mmap.PAGESIZE) for start in every_second)))
    assert copied_in_fork(memory, lambda: None) == 0
    assert copied_in_fork(memory, populate) == PAGES // 2


def test_one_by_one_where_linux_takes_no_vector(
    memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "NR_PROCESS_MADVISE", -1)
    populate = Populator(
        Runs(((memory, 2 * mmap.PAGESIZE), (memory + 8 * mmap.PAGESIZE, mmap.PAGESIZE)))
    )
    assert copied_in_fork(memory, populate) == 3


def test_a_range_that_is_gone_is_no_error(memory: int) -> None:
    populate = Populator(Runs(((1 << 40, mmap.PAGESIZE), (memory, mmap.PAGESIZE))))
    assert copied_in_fork(memory, populate) == 1
