"""Models as rows of tables: human units, short ids. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sandboxkernel.units import format_size

if TYPE_CHECKING:
    from sandboxkernel.models import Event, Image, Kernel, Limits, Stats, UserLayer

__all__ = [
    "EVENT_HEADERS",
    "IMAGE_HEADERS",
    "KERNEL_HEADERS",
    "LAYER_HEADERS",
    "STATS_HEADERS",
    "age",
    "clamped",
    "event_row",
    "flatten",
    "image_row",
    "kernel_row",
    "layer_row",
    "short_digest",
    "stats_row",
]

KERNEL_HEADERS = ("ID", "NAME", "USER", "PROFILE", "STATUS", "MEMORY", "CPUS", "PIDS", "CREATED")
STATS_HEADERS = (
    "ID", "NAME", "CPU", "CPU TIME", "THROTTLED", "MEMORY", "PEAK", "PIDS", "DISK READ",
    "DISK WRITE", "OOM KILLS",
)  # fmt: skip
EVENT_HEADERS = ("TIME", "ACTION", "NAME", "USER", "DETAIL")
IMAGE_HEADERS = ("REF", "DIGEST", "SIZE", "LAYERS", "IN USE", "CREATED")
LAYER_HEADERS = ("USER", "LINEAGE", "SIZE", "FILES", "IN USE", "MODIFIED")
NOTHING = "-"
_AGES = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
# Members of Limits that hold bytes; the rest are numbers.
_LIMITS = ("memory_bytes", "swap_bytes", "shm_bytes", "tmp_bytes", "cpus", "pids")
_IO_LIMITS = ("read_bytes_per_s", "write_bytes_per_s")


def age(then: datetime, now: datetime) -> str:
    """How long ago, in the largest unit that fits."""
    seconds = max(0, math.floor((now - then).total_seconds()))
    for size, unit in _AGES:
        if seconds >= size:
            count = seconds // size
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "now"


def short_digest(digest: str) -> str:
    """The first 12 hex digits."""
    return digest.removeprefix("sha256:")[:12]


def kernel_row(kernel: Kernel, now: datetime) -> tuple[str, ...]:
    """One row of `ps`."""
    limits = kernel.limits
    return (
        kernel.id,
        kernel.kernel_id,
        kernel.owner_name,
        kernel.profile,
        _status(kernel),
        _size(limits.memory_bytes),
        _number(limits.cpus),
        _number(limits.pids),
        age(kernel.created_at, now),
    )


def _status(kernel: Kernel) -> str:
    if kernel.exit is None or kernel.state != "exited":
        return kernel.state
    if kernel.exit.reason == "oom_killed":
        return "out of memory"
    return f"exited ({kernel.exit.returncode()})"


def stats_row(name: str, stats: Stats, previous: Stats | None = None) -> tuple[str, ...]:
    """One row of `stats`; the share of the CPU needs an earlier reading."""
    return (
        name,
        stats.kernel_id,
        _cpu_share(stats, previous),
        f"{stats.cpu_usage_s:.1f} s",
        f"{stats.cpu_throttled_s:.1f} s",
        _of(_size(stats.memory_bytes), _size(stats.memory_limit_bytes)),
        _size(stats.memory_peak_bytes),
        _of(str(stats.pids), _number(stats.pids_limit)),
        _size(stats.io_read_bytes),
        _size(stats.io_write_bytes),
        str(stats.oom_kills),
    )


def _cpu_share(stats: Stats, previous: Stats | None) -> str:
    seconds = (stats.time - previous.time).total_seconds() if previous else 0
    if previous is None or seconds <= 0:
        return NOTHING
    return f"{100 * (stats.cpu_usage_s - previous.cpu_usage_s) / seconds:.0f}%"


def event_row(event: Event) -> tuple[str, ...]:
    """One row of `events`."""
    return (
        event.time.astimezone().isoformat(timespec="milliseconds"),
        event.action,
        event.kernel_id or NOTHING,
        _number(event.owner_uid),
        " ".join(f"{name}={value}" for name, value in event.detail.items()),
    )


def image_row(image: Image, now: datetime) -> tuple[str, ...]:
    """One row of `image ls`."""
    return (
        image.ref,
        short_digest(image.digest),
        format_size(image.size_bytes),
        str(len(image.layers)),
        str(image.in_use),
        age(image.created_at, now),
    )


def layer_row(layer: UserLayer, user: str, now: datetime) -> tuple[str, ...]:
    """One row of `user layer ls`."""
    return (
        user,
        layer.lineage,
        format_size(layer.size_bytes),
        str(layer.files),
        str(layer.in_use),
        age(layer.modified_at, now),
    )


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Members of nested objects, empty ones left out: ("limits.memory_bytes", "512.0 MiB")."""
    rows = []
    for name, member in value.items():
        path = f"{prefix}{name}"
        if isinstance(member, Mapping):
            rows += flatten(member, f"{path}.")
        elif isinstance(member, list):
            rows += [(f"{path}[{index}]", str(item)) for index, item in enumerate(member)]
        elif member not in (None, ""):
            rows.append((path, _member(name, member)))
    return rows


def _member(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return format_size(value)
    if name.endswith("_bytes_per_s"):
        return f"{format_size(value)}/s"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def clamped(asked: Limits, given: Limits) -> list[str]:
    """One sentence for every wish that was not granted in full."""
    pairs = [(name, getattr(asked, name), getattr(given, name)) for name in _LIMITS]
    for name in _IO_LIMITS if asked.io is not None else ():
        pairs.append((name, getattr(asked.io, name), getattr(given.io, name, None)))
    return [
        f"{name.split('_bytes')[0]} is {_member(name, got)}, not the {_member(name, wish)} asked "
        "for: the profile or a grant allows no more"
        for name, wish, got in pairs
        if wish is not None and got is not None and got != wish
    ]


def _size(value: int | None) -> str:
    return NOTHING if value is None else format_size(value)


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:g}"


def _of(used: str, limit: str) -> str:
    return f"{used} / {limit}"
