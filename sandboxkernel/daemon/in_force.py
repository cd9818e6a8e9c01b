"""What holds for a running sandbox at this moment, read from Linux and not from memory. Effects.

Whoever may write to cgroups or /proc may have changed something since the start: `inspect` shows
what is, and names what is not as it was set.
"""

from __future__ import annotations

import errno
import os
import re

from sandboxkernel.daemon.sandbox import Sandbox
from sandboxkernel.errors import KernelNotRunning
from sandboxkernel.models import InForce, IoLimit, Limits, MountInForce
from sandboxruntime.cgroup import Limits as CgroupLimits
from sandboxruntime.verify import read_mountinfo

__all__ = ["differing", "limits_model", "parse_mounts", "parse_rlimits", "read_in_force"]

PAGE = os.sysconf("SC_PAGE_SIZE")
_GONE = (errno.ENOENT, errno.ESRCH, errno.ENODEV)  # process, or its cgroup


def read_in_force(sandbox: Sandbox) -> InForce | None:
    """What is in force; None when the program has ended, also while it was looked at."""
    if sandbox.process is None:
        return None
    base = f"/proc/{sandbox.process.peer.pid}"
    try:
        limits = limits_model(
            sandbox.cgroup().limits_in_force(),
            disk=sandbox.ground.disk,
            shm_bytes=_size(f"{base}/root/dev/shm"),
            tmp_bytes=_size(f"{base}/root/tmp"),
        )
        with open(f"{base}/limits", encoding="ascii") as file:
            rlimits = parse_rlimits(file.read())
        mounts = parse_mounts(read_mountinfo(sandbox.process.peer.pid, errors="replace"))
    except KernelNotRunning:
        return None
    except OSError as exc:
        if exc.errno not in _GONE:
            raise
        return None
    return InForce(
        limits=limits,
        differs=differing(sandbox.limits, limits),
        rlimits=rlimits,
        mounts=mounts,
    )


def _size(path: str) -> int:
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize


def limits_model(
    found: CgroupLimits, *, disk: tuple[int, int] | None, shm_bytes: int, tmp_bytes: int
) -> Limits:
    """Limits of a cgroup and sizes of file systems as limits of the API. Pure."""
    throttle = next((io for io in found.io if (io.major, io.minor) == disk), None)
    io = None
    if throttle is not None:
        io = IoLimit(
            read_bytes_per_s=throttle.read_bytes_per_s,
            write_bytes_per_s=throttle.write_bytes_per_s,
            read_ops_per_s=throttle.read_ops_per_s,
            write_ops_per_s=throttle.write_ops_per_s,
        )
    return Limits(
        memory_bytes=found.memory_bytes,
        swap_bytes=found.swap_bytes,
        cpus=found.cpu_quota_us / found.cpu_period_us if found.cpu_quota_us else None,
        cpu_weight=found.cpu_weight,
        pids=found.pids,
        shm_bytes=shm_bytes,
        tmp_bytes=tmp_bytes,
        io=io,
    )


def differing(asked: Limits, found: Limits) -> list[str]:
    """Names of the limits that are not as they were set; sizes to the page. Pure."""
    names = []
    for name in Limits.__struct_fields__:
        wanted, have = getattr(asked, name), getattr(found, name)
        if wanted is None:
            continue
        if name.endswith("_bytes"):
            same = have is not None and abs(wanted - have) < PAGE
        elif name in ("cpus", "cpu_weight"):  # Linux keeps microseconds, and shares on v1
            same = have is not None and abs(wanted - have) <= max(0.001, wanted * 0.01)
        else:
            same = wanted == have
        if not same:
            names.append(name)
    return names


def parse_rlimits(text: str) -> dict[str, list[int | None]]:
    """Soft and hard limit by name, from /proc/PID/limits; None is no limit. Pure."""
    found: dict[str, list[int | None]] = {}
    for line in text.splitlines()[1:]:
        match = re.match(r"(.+?)\s{2,}(\S+)\s+(\S+)", line)
        if match:
            values = [None if word == "unlimited" else int(word) for word in match.groups()[1:]]
            found[match[1].removeprefix("Max ")] = values
    return found


def parse_mounts(text: str) -> list[MountInForce]:
    """Destination, type and options of every mount, from /proc/PID/mountinfo. Pure."""
    mounts = []
    for line in filter(None, text.split("\n")):
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        mounts.append(
            MountInForce(destination=point, type=right.split(" ")[0], options=fields[5].split(","))
        )
    return mounts
