"""Resource limits of processes, by their OCI names. Source: getrlimit(2)."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from sandboxruntime.errors import SpecError

__all__ = ["DEFAULTS", "INFINITY", "NUMBERS", "apply", "plan"]

INFINITY: Final = (1 << 64) - 1  # RLIM_INFINITY as the OCI runtime spec writes it (uint64)
_KIB: Final = 1024
_MIB: Final = 1024 * _KIB

# asm-generic/resource.h: the same on x86_64 and aarch64.
NUMBERS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "RLIMIT_CPU": 0,
        "RLIMIT_FSIZE": 1,
        "RLIMIT_DATA": 2,
        "RLIMIT_STACK": 3,
        "RLIMIT_CORE": 4,
        "RLIMIT_RSS": 5,
        "RLIMIT_NPROC": 6,
        "RLIMIT_NOFILE": 7,
        "RLIMIT_MEMLOCK": 8,
        "RLIMIT_AS": 9,
        "RLIMIT_LOCKS": 10,
        "RLIMIT_SIGPENDING": 11,
        "RLIMIT_MSGQUEUE": 12,
        "RLIMIT_NICE": 13,
        "RLIMIT_RTPRIO": 14,
        "RLIMIT_RTTIME": 15,
    }
)

# (soft, hard). Processes and memory are the cgroup's business: RLIMIT_NPROC and RLIMIT_AS
# count per user and per address space and would only break threads and mmap.
DEFAULTS: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {
        "RLIMIT_CORE": (0, 0),  # a core file holds the user's data and fills the disk
        # Soft 1024 would break large data sets, soft 1048576 programs that loop over all
        # descriptors before exec.
        "RLIMIT_NOFILE": (65_536, 1_048_576),
        "RLIMIT_MEMLOCK": (8 * _MIB, 8 * _MIB),  # Linux's own default since 5.16
        "RLIMIT_MSGQUEUE": (819_200, 819_200),  # Linux's default; kernel memory of POSIX queues
        "RLIMIT_NICE": (0, 0),
        "RLIMIT_RTPRIO": (0, 0),
        "RLIMIT_SIGPENDING": (4096, 4096),  # kernel memory of queued signals
    }
)


def plan(
    rlimits: Mapping[str, tuple[int, int]], current: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """Return what to set, given the limits in force. Pure.

    A hard limit is never raised (that needs CAP_SYS_RESOURCE): above the one in force it
    becomes the one in force, and so does a soft limit above it. Raises SpecError for an unknown
    name, a soft limit above its hard one, or a number out of range.
    """
    result = {}
    for name, pair in rlimits.items():
        if name not in NUMBERS:
            raise SpecError(f"unknown resource limit {name!r}", field="process.rlimits")
        soft, hard = pair
        if not 0 <= soft <= hard <= INFINITY:
            raise SpecError(
                f"{name}: soft limit {soft} and hard limit {hard} do not fit",
                field="process.rlimits",
            )
        hard = min(hard, current[name][1])
        result[name] = (min(soft, hard), hard)
    return result


def plan_own(rlimits: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """What plan() makes of the limits that the calling process has. Raises SpecError as it does."""
    known = {name: NUMBERS[name] for name in rlimits if name in NUMBERS}
    return plan(rlimits, {name: _get(number) for name, number in known.items()})


def apply(rlimits: Mapping[str, tuple[int, int]]) -> None:
    """Set the limits of the calling process and read them back.

    Lowering is for good. Raises SpecError as plan() does, OSError if the kernel refuses.
    """
    for name, pair in plan_own(rlimits).items():
        resource.setrlimit(NUMBERS[name], (_signed(pair[0]), _signed(pair[1])))
        if _get(NUMBERS[name]) != pair:
            raise PermissionError(errno.EPERM, f"{name} is not {pair}: {os.strerror(errno.EPERM)}")


def _get(number: int) -> tuple[int, int]:
    soft, hard = resource.getrlimit(number)
    return soft & INFINITY, hard & INFINITY  # Python shows infinity as -1


def _signed(value: int) -> int:
    return resource.RLIM_INFINITY if value == INFINITY else value
