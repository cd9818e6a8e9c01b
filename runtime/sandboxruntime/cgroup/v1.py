"""Writes and readings of cgroup v1. Pure. Source: Linux, Documentation/admin-guide/cgroup-v1."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sandboxruntime.cgroup.devices import ALLOWED
from sandboxruntime.cgroup.limits import Check, IoLimit, Limits, Usage, Write

__all__ = [
    "io_resets",
    "plan_cpu",
    "plan_devices",
    "plan_io",
    "plan_memory",
    "plan_parent",
    "plan_pids",
    "usage",
]

UNLIMITED_BYTES = 1 << 62  # above every real limit; what an untouched memory cgroup allows

_SWAP_HINT = "boot with the kernel parameter swapaccount=1"

_IO_FILES = (
    ("read_bytes_per_s", "blkio.throttle.read_bps_device"),
    ("write_bytes_per_s", "blkio.throttle.write_bps_device"),
    ("read_ops_per_s", "blkio.throttle.read_iops_device"),
    ("write_ops_per_s", "blkio.throttle.write_iops_device"),
)


def plan_parent() -> list[Write]:
    """Plan what every memory directory on the way to a limit needs before it has children.

    Without use_hierarchy a child's pages would not count against its parents. Linux 5.11 made
    it the only mode; the file may be gone.
    """
    return [Write("memory", "memory.use_hierarchy", "1", "1", optional=True)]


def plan_memory(
    limits: Limits, *, current_bytes: int = UNLIMITED_BYTES, swap_exists: bool = True
) -> list[Write]:
    """Plan the memory limit; `current_bytes` is the one in force."""
    if limits.memory_bytes is None:
        memory, memsw, memsw_bytes = "-1", "-1", UNLIMITED_BYTES
    else:
        memsw_bytes = limits.memory_bytes + limits.swap_bytes
        memory, memsw = str(limits.memory_bytes), str(memsw_bytes)
    write_memory = Write("memory", "memory.limit_in_bytes", memory, memory, Check.PAGES)
    write_memsw = Write(
        "memory", "memory.memsw.limit_in_bytes", memsw, memsw, Check.PAGES,
        optional=not swap_exists, hint=_SWAP_HINT,
    )  # fmt: skip
    # The kernel insists on limit <= memsw after every single write.
    raising = memsw_bytes >= current_bytes
    writes = [write_memsw, write_memory] if raising else [write_memory, write_memsw]
    if limits.memory_bytes is not None and limits.swap_bytes == 0:
        writes.append(Write("memory", "memory.swappiness", "0", "0", optional=True))
    return writes


def cpu_shares(weight: int) -> int:
    """The cpu.shares, 2 to 262144, of a cpu.weight: 1024 for 100, as Linux itself converts.

    kernel/sched/core.c, sched_weight_from_cgroup().
    """
    return max(2, min(262_144, round(weight * 1024 / 100)))


def plan_cpu(limits: Limits, *, reset: bool) -> list[Write]:
    """Plan CPU weight and quota; `reset` also writes "uncapped" where nothing is asked."""
    writes = []
    if limits.cpu_weight is not None or reset:
        shares = str(cpu_shares(limits.cpu_weight or 100))
        writes.append(Write("cpu", "cpu.shares", shares, shares))
    if limits.cpu_quota_us is not None or reset:
        period, quota = str(limits.cpu_period_us), str(limits.cpu_quota_us or -1)
        writes.append(Write("cpu", "cpu.cfs_period_us", period, period))
        writes.append(Write("cpu", "cpu.cfs_quota_us", quota, quota))
    return writes


def plan_pids(limits: Limits) -> list[Write]:
    """Plan the limit of tasks (threads count)."""
    value = "max" if limits.pids is None else str(limits.pids)
    return [Write("pids", "pids.max", value, value)]


def plan_io(io: Sequence[IoLimit], *, reset: bool) -> list[Write]:
    """Plan the throttles. They hold for direct and synchronous I/O; write-back is root's."""
    writes = []
    for limit in io:
        for attribute, file in _IO_FILES:
            value = getattr(limit, attribute)
            if value is not None:
                line = f"{limit.device} {value}"
                writes.append(Write("blkio", file, line, line, Check.LINE))
            elif reset:
                writes.append(Write("blkio", file, f"{limit.device} 0", limit.device, Check.ABSENT))
    return writes


def io_resets(read: Callable[[str, str], str], keep: Sequence[IoLimit]) -> list[Write]:
    """Plan the removal of throttles of disks that are not in `keep`."""
    kept = {limit.device for limit in keep}
    writes = []
    for _attribute, file in _IO_FILES:
        devices = {line.split(" ")[0] for line in read("blkio", file).splitlines() if line}
        for device in sorted(devices - kept):
            writes.append(Write("blkio", file, f"{device} 0", device, Check.ABSENT))
    return writes


def plan_devices() -> list[Write]:
    """Plan the device allow-list: everything denied but what every program expects in /dev."""
    writes = [Write("devices", "devices.deny", "a", "a", Check.ABSENT, read_file="devices.list")]
    for major, minor in ALLOWED:
        line = f"c {major}:{'*' if minor is None else minor} rw"
        writes.append(
            Write("devices", "devices.allow", line, line, Check.LINE, read_file="devices.list")
        )
    return writes


def usage(read: Callable[[str, str], str]) -> Usage:
    """Read the counters. `read(controller, file)` returns "" for a missing file."""
    io = read("blkio", "blkio.throttle.io_service_bytes_recursive") or read(
        "blkio", "blkio.throttle.io_service_bytes"
    )
    return Usage(
        memory_bytes=_number(read("memory", "memory.usage_in_bytes")),
        memory_peak_bytes=_number(read("memory", "memory.max_usage_in_bytes")),
        cpu_usage_us=_number(read("cpuacct", "cpuacct.usage")) // 1000,
        cpu_throttled_us=_keyed(read("cpu", "cpu.stat"), "throttled_time") // 1000,
        pids=_number(read("pids", "pids.current")),
        io_read_bytes=_io_sum(io, "Read"),
        io_write_bytes=_io_sum(io, "Write"),
        oom_kills=_keyed(read("memory", "memory.oom_control"), "oom_kill"),
    )


def _number(text: str) -> int:
    return int(text) if text.strip() else 0


def _keyed(text: str, key: str) -> int:
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0


def _io_sum(text: str, direction: str) -> int:
    rows = [line.split() for line in text.splitlines()]
    return sum(int(row[2]) for row in rows if len(row) == 3 and row[1] == direction)
