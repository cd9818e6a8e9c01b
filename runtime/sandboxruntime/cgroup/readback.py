"""The limits that a cgroup has now, as Linux tells them, of either generation. Pure.

Source: cgroup-v1/memory.rst, blkio-controller.rst; cgroup-v2.rst; sched-bwc.rst.
"""

from __future__ import annotations

from collections.abc import Callable

from sandboxruntime.cgroup.layout import Layout
from sandboxruntime.cgroup.limits import IoLimit, Limits

__all__ = ["limits_in_force"]

_UNLIMITED = 2**63 - 2**16  # v1 shows PAGE_COUNTER_MAX, whole pages, when there is none
_V1_IO = {
    "blkio.throttle.read_bps_device": "read_bytes_per_s",
    "blkio.throttle.write_bps_device": "write_bytes_per_s",
    "blkio.throttle.read_iops_device": "read_ops_per_s",
    "blkio.throttle.write_iops_device": "write_ops_per_s",
}
_V2_IO = {
    "rbps": "read_bytes_per_s",
    "wbps": "write_bytes_per_s",
    "riops": "read_ops_per_s",
    "wiops": "write_ops_per_s",
}


def limits_in_force(layout: Layout, read: Callable[[str, str], str]) -> Limits:
    """What `read(controller, file)` shows; "" is a missing file. What is not capped is None."""
    memory, swap = _memory(layout, read)
    quota, period, weight = _cpu(layout, read)
    return Limits(
        memory_bytes=memory,
        swap_bytes=swap,
        cpu_quota_us=quota,
        cpu_period_us=period,
        cpu_weight=weight,
        pids=_number(read("pids" if "pids" in layout.v1 else "", "pids.max")),
        io=_io(layout, read),
    )


def _number(text: str) -> int | None:
    text = text.strip()
    if not text.lstrip("-").isdecimal():
        return None  # "max", or no such file
    value = int(text)
    return value if 0 <= value < _UNLIMITED else None


def _memory(layout: Layout, read: Callable[[str, str], str]) -> tuple[int | None, int]:
    if "memory" not in layout.v1:
        return _number(read("", "memory.max")), _number(read("", "memory.swap.max")) or 0
    memory = _number(read("memory", "memory.limit_in_bytes"))
    both = _number(read("memory", "memory.memsw.limit_in_bytes"))
    return memory, max(0, both - memory) if both and memory else 0


def _cpu(
    layout: Layout, read: Callable[[str, str], str]
) -> tuple[int | None, int, int | None]:  # fmt: skip
    if "cpu" in layout.v1:
        shares = _number(read("cpu", "cpu.shares"))
        period = _number(read("cpu", "cpu.cfs_period_us"))
        weight = None if shares is None else max(1, round(shares * 100 / 1024))
        return _number(read("cpu", "cpu.cfs_quota_us")), period or 100_000, weight
    words = read("", "cpu.max").split()
    period = _number(words[1]) if len(words) > 1 else None
    quota = _number(words[0]) if words else None
    return quota, period or 100_000, _number(read("", "cpu.weight"))


def _io(layout: Layout, read: Callable[[str, str], str]) -> tuple[IoLimit, ...]:
    disks: dict[tuple[int, int], dict[str, int]] = {}

    def add(device: str, member: str, text: str) -> None:
        value = _number(text)
        if value:
            major, minor = map(int, device.split(":"))
            disks.setdefault((major, minor), {})[member] = value

    if "blkio" in layout.v1:
        for file, member in _V1_IO.items():
            for line in read("blkio", file).splitlines():
                add(line.split()[0], member, line.split()[1])
    else:
        for line in read("", "io.max").splitlines():
            device, *rates = line.split()
            for rate in rates:
                key, _, text = rate.partition("=")
                add(device, _V2_IO[key], text)
    return tuple(IoLimit(*number, **members) for number, members in disks.items())
