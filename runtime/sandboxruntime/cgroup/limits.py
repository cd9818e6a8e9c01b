"""What a cgroup can be asked for, and the writes that ask for it. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from sandboxruntime.errors import SpecError

__all__ = ["Check", "IoLimit", "Limits", "Usage", "Write", "matches"]

_MIN_CPU_QUOTA_US = 1_000  # sched(7), "cfs_quota_us": below 1 ms the kernel answers EINVAL
_CPU_PERIOD_US = (1_000, 1_000_000)
_WEIGHT = (1, 10_000)  # cgroup-v2.rst, cpu.weight
_MAX_PIDS = 4_194_304  # PID_MAX_LIMIT on 64-bit Linux


@dataclass(frozen=True, slots=True)
class IoLimit:
    """Throttle of one whole disk. None means uncapped."""

    major: int
    minor: int
    read_bytes_per_s: int | None = None
    write_bytes_per_s: int | None = None
    read_ops_per_s: int | None = None
    write_ops_per_s: int | None = None

    def __post_init__(self) -> None:
        for name in ("read_bytes_per_s", "write_bytes_per_s", "read_ops_per_s", "write_ops_per_s"):
            _at_least(getattr(self, name), 1, f"io.{name}")

    @property
    def device(self) -> str:
        """The disk as the cgroup files name it, "major:minor"."""
        return f"{self.major}:{self.minor}"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one cgroup. None means uncapped; SpecError for a value no host could take.

    `swap_bytes` is swap on top of `memory_bytes` and means nothing without it. `cpu_weight` is
    the v2 scale (1..10000, 100 is the default of every cgroup). `cpu_quota_us` is CPU time per
    `cpu_period_us`: 50_000 of 100_000 is half a core.
    """

    memory_bytes: int | None = None
    swap_bytes: int = 0
    cpu_quota_us: int | None = None
    cpu_period_us: int = 100_000
    cpu_weight: int | None = None
    pids: int | None = None
    io: tuple[IoLimit, ...] = ()

    def __post_init__(self) -> None:
        _at_least(self.memory_bytes, 1, "memory_bytes")
        _at_least(self.swap_bytes, 0, "swap_bytes")
        _at_least(self.cpu_quota_us, _MIN_CPU_QUOTA_US, "cpu_quota_us")
        _within(self.cpu_period_us, _CPU_PERIOD_US, "cpu_period_us")
        _within(self.cpu_weight, _WEIGHT, "cpu_weight")
        _within(self.pids, (1, _MAX_PIDS), "pids")
        devices = [limit.device for limit in self.io]
        if len(set(devices)) != len(devices):
            raise SpecError("a disk has two io limits", field="io")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a cgroup uses now. 0 where this host has no controller that counts it."""

    memory_bytes: int = 0
    memory_peak_bytes: int = 0
    cpu_usage_us: int = 0
    cpu_throttled_us: int = 0
    pids: int = 0
    io_read_bytes: int = 0
    io_write_bytes: int = 0
    oom_kills: int = 0


class Check(enum.StrEnum):
    """How the value read back is compared with the one written."""

    EXACT = "exact"
    PAGES = "pages"  # the kernel rounds to whole pages and prints its own "unlimited"
    LINE = "line"  # one line of several, found by its first word, must be as expected
    ABSENT = "absent"  # no line begins with the expected word
    WORDS = "words"  # every expected word is there, in any order


@dataclass(frozen=True, slots=True)
class Write:
    """One write(2) to one cgroup file, and what reading it back must show."""

    controller: str  # a v1 controller, or "" for the v2 tree
    file: str
    value: str
    expected: str
    check: Check = Check.EXACT
    optional: bool = False  # a missing file is no error: the write only refines another one
    read_file: str = ""  # where to read back, if not `file`
    hint: str = ""  # the fix, if the file is missing


def matches(write: Write, text: str, page_bytes: int) -> bool:
    """Whether reading `text` back shows that `write` took effect."""
    text = text.strip()
    match write.check:
        case Check.EXACT:
            return text == write.expected
        case Check.PAGES:
            return _same_pages(write.expected, text, page_bytes)
        case Check.LINE:
            return write.expected in _lines(text)
        case Check.ABSENT:
            return all(line.split(" ")[0] != write.expected for line in _lines(text))
        case Check.WORDS:
            return set(write.expected.split()) <= set(text.split())


def _lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def _same_pages(expected: str, text: str, page_bytes: int) -> bool:
    if not text.isdecimal():
        return text == expected
    got = int(text)
    if expected in ("-1", "max"):
        # cgroup v1 prints PAGE_COUNTER_MAX in bytes, rounded down to a page.
        return got >= 2**63 - 2**16
    wanted = int(expected)
    # v1 rounds up, v2 rounds down (page_counter_memparse, mm/page_counter.c).
    return wanted - page_bytes < got < wanted + page_bytes


def _at_least(value: int | None, low: int, field: str) -> None:
    if value is not None and value < low:
        raise SpecError(f"{field} is {value}; the least is {low}", field=field)


def _within(value: int | None, bounds: tuple[int, int], field: str) -> None:
    if value is not None and not bounds[0] <= value <= bounds[1]:
        raise SpecError(f"{field} is {value}; allowed are {bounds[0]}..{bounds[1]}", field=field)
