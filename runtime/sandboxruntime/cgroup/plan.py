"""From limits to writes, on whatever mixture of cgroup generations a host has. Pure."""

from __future__ import annotations

from sandboxruntime.cgroup import v1, v2
from sandboxruntime.cgroup.layout import Layout
from sandboxruntime.cgroup.limits import Limits, Write
from sandboxruntime.errors import HostError

__all__ = ["plan_devices", "plan_parent_writes", "plan_writes"]

# For each limit: its v1 controller, its v2 controller.
_MEMORY = ("memory", "memory")
_CPU = ("cpu", "cpu")
_PIDS = ("pids", "pids")
_IO = ("blkio", "io")


def _generation(layout: Layout, names: tuple[str, str]) -> int:
    """Return 1 or 2 for the tree that has the controller, 0 if none has.

    A controller is in exactly one tree at a time, so v1 needs no preference over v2.
    """
    if names[0] in layout.v1:
        return 1
    return 2 if names[1] in layout.v2_controllers else 0


def _require(layout: Layout, names: tuple[str, str], wanted: bool) -> int:
    generation = _generation(layout, names)
    if wanted and generation == 0:
        name = names[1] if layout.v2 is not None and not layout.v1 else names[0]
        raise HostError(
            f"cannot limit {names[1]}: this host has no {name} cgroup controller",
            feature=f"cgroup:{names[1]}",
            hint=f"boot without cgroup_disable={name}, or mount the {name} controller",
        )
    return generation


def plan_parent_writes(layout: Layout, limits: Limits) -> list[Write]:
    """Plan the writes to each directory above a cgroup, so that `limits` can work in it.

    Controllers that only count are enabled too where they exist, for Usage. Raises HostError
    if a limit needs a controller that this host lacks.
    """
    writes = v1.plan_parent() if _generation(layout, _MEMORY) == 1 else []
    wanted = {
        _MEMORY: limits.memory_bytes is not None,
        _PIDS: limits.pids is not None,
        _CPU: limits.cpu_quota_us is not None or limits.cpu_weight is not None,
        _IO: bool(limits.io),
    }
    enable = [names[1] for names, need in wanted.items() if _require(layout, names, need) == 2]
    return writes + v2.plan_subtree_control(enable)


def plan_writes(
    layout: Layout,
    limits: Limits,
    *,
    reset: bool = False,
    memory_limit_bytes: int = v1.UNLIMITED_BYTES,
    swap_exists: bool = True,
    kill_as_unit: bool = True,
) -> list[Write]:
    """Plan the writes that put `limits` into force, in an order the kernel accepts.

    `reset` also lifts what `limits` leaves uncapped (an update, not a fresh cgroup);
    `memory_limit_bytes` is the v1 memory limit in force; `swap_exists` is false on a kernel
    built without swap, where there is nothing to limit. Raises HostError if a requested limit
    has no controller here.
    """
    writes: list[Write] = []
    wanted = limits.memory_bytes is not None
    generation = _require(layout, _MEMORY, wanted)
    if generation == 1 and (wanted or reset):
        writes += v1.plan_memory(limits, current_bytes=memory_limit_bytes, swap_exists=swap_exists)
    elif generation == 2 and (wanted or reset):
        writes += v2.plan_memory(limits, swap_exists=swap_exists, kill_as_unit=kill_as_unit)

    wanted = limits.pids is not None
    generation = _require(layout, _PIDS, wanted)
    if generation and (wanted or reset):
        writes += v1.plan_pids(limits) if generation == 1 else v2.plan_pids(limits)

    wanted = limits.cpu_quota_us is not None or limits.cpu_weight is not None
    generation = _require(layout, _CPU, wanted)
    if generation == 1:
        writes += v1.plan_cpu(limits, reset=reset)
    elif generation == 2:
        writes += v2.plan_cpu(limits, reset=reset)

    generation = _require(layout, _IO, bool(limits.io))
    if generation == 1:
        writes += v1.plan_io(limits.io, reset=reset)
    elif generation == 2:
        writes += v2.plan_io(limits.io)
    return writes


def plan_devices(layout: Layout) -> list[Write]:
    """Plan the device allow-list where a v1 devices controller is mounted; else nothing.

    On v2 it is a program: devices.py. Without either the user namespace is what keeps device nodes
    away: mknod(2) is EPERM there and every mount is nodev but /dev.
    """
    return v1.plan_devices() if "devices" in layout.v1 else []
