"""Writes and readings of cgroup v2. Pure. Source: Linux, admin-guide/cgroup-v2.rst."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sandboxruntime.cgroup.limits import Check, IoLimit, Limits, Usage, Write

__all__ = [
    "io_resets",
    "plan_cpu",
    "plan_io",
    "plan_memory",
    "plan_pids",
    "plan_subtree_control",
    "usage",
]

_SWAP_HINT = "boot with the kernel parameter swapaccount=1"
_UNCAPPED_IO = "rbps=max wbps=max riops=max wiops=max"


def plan_subtree_control(controllers: Sequence[str]) -> list[Write]:
    """Plan what a parent must enable so that its children have `controllers`.

    One write per controller, so that a refusal names it. The kernel refuses (EBUSY) while the
    parent holds processes of its own: the "no internal processes" rule.
    """
    return [
        Write("", "cgroup.subtree_control", f"+{name}", name, Check.WORDS) for name in controllers
    ]


def plan_memory(
    limits: Limits, *, swap_exists: bool = True, kill_as_unit: bool = True
) -> list[Write]:
    """Plan the memory and swap limits.

    With `kill_as_unit` an out-of-memory kill takes the whole sandbox; a ceiling over several
    sandboxes must not, or one user's runaway kernel would take all of that user's kernels.
    """
    capped = limits.memory_bytes is not None
    memory = str(limits.memory_bytes) if capped else "max"
    swap = str(limits.swap_bytes) if capped else "max"
    group = "1" if kill_as_unit else "0"
    return [
        # Swap first: lowering memory.max before it would push pages into swap just to evict them.
        Write("", "memory.swap.max", swap, swap, Check.PAGES, not swap_exists, hint=_SWAP_HINT),
        Write("", "memory.max", memory, memory, Check.PAGES),
        Write("", "memory.oom.group", group, group),
    ]


def plan_cpu(limits: Limits, *, reset: bool) -> list[Write]:
    """Plan CPU weight and quota; `reset` also writes "uncapped" where nothing is asked."""
    writes = []
    if limits.cpu_weight is not None or reset:
        weight = str(limits.cpu_weight or 100)
        writes.append(Write("", "cpu.weight", weight, weight))
    if limits.cpu_quota_us is not None or reset:
        quota = "max" if limits.cpu_quota_us is None else str(limits.cpu_quota_us)
        value = f"{quota} {limits.cpu_period_us}"
        writes.append(Write("", "cpu.max", value, value))
    return writes


def plan_pids(limits: Limits) -> list[Write]:
    """Plan the limit of tasks (threads count)."""
    value = "max" if limits.pids is None else str(limits.pids)
    return [Write("", "pids.max", value, value)]


def plan_io(io: Sequence[IoLimit]) -> list[Write]:
    """Plan the throttles, one line per disk."""
    writes = []
    for limit in io:
        pairs = {
            "rbps": limit.read_bytes_per_s,
            "wbps": limit.write_bytes_per_s,
            "riops": limit.read_ops_per_s,
            "wiops": limit.write_ops_per_s,
        }
        words = " ".join(f"{key}={'max' if n is None else n}" for key, n in pairs.items())
        line = f"{limit.device} {words}"
        if words == _UNCAPPED_IO:  # the kernel does not print a disk without limits
            writes.append(Write("", "io.max", line, limit.device, Check.ABSENT))
        else:
            writes.append(Write("", "io.max", line, line, Check.LINE))
    return writes


def io_resets(read: Callable[[str, str], str], keep: Sequence[IoLimit]) -> list[Write]:
    """Plan the removal of throttles of disks that are not in `keep`."""
    kept = {limit.device for limit in keep}
    devices = {line.split(" ")[0] for line in read("", "io.max").splitlines() if line}
    return [
        Write("", "io.max", f"{device} {_UNCAPPED_IO}", device, Check.ABSENT)
        for device in sorted(devices - kept)
    ]


def usage(read: Callable[[str, str], str]) -> Usage:
    """Read the counters. `read("", file)` returns "" for a missing file."""
    cpu = _keyed(read("", "cpu.stat"))
    current = _number(read("", "memory.current"))
    io = read("", "io.stat").split()
    return Usage(
        memory_bytes=current,
        # memory.peak appeared in Linux 5.19.
        memory_peak_bytes=max(current, _number(read("", "memory.peak"))),
        cpu_usage_us=cpu.get("usage_usec", 0),
        cpu_throttled_us=cpu.get("throttled_usec", 0),
        pids=_number(read("", "pids.current")),
        io_read_bytes=_io_sum(io, "rbytes="),
        io_write_bytes=_io_sum(io, "wbytes="),
        oom_kills=_keyed(read("", "memory.events")).get("oom_kill", 0),
    )


def _number(text: str) -> int:
    return int(text) if text.strip() else 0


def _keyed(text: str) -> dict[str, int]:
    pairs = [line.split() for line in text.splitlines()]
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def _io_sum(words: Sequence[str], prefix: str) -> int:
    return sum(int(word.removeprefix(prefix)) for word in words if word.startswith(prefix))
