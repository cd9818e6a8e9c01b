"""Where this host mounts its cgroup hierarchies. Parsing is pure; read_layout() reads /proc."""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sandboxruntime.errors import HostError, SpecError

__all__ = [
    "USED_V1_CONTROLLERS",
    "Layout",
    "Mode",
    "check_path",
    "parse_layout",
    "parse_others",
    "read_layout",
    "remove_from_others",
]

# Linux, Documentation/admin-guide/cgroup-v1. Super block options hold other words too ("rw",
# "xattr", "name=systemd"), so a controller is what is on this list.
_KNOWN_V1_CONTROLLERS = frozenset(
    {
        "blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "misc",
        "net_cls", "net_prio", "perf_event", "pids", "rdma",
    }
)  # fmt: skip

# The v1 hierarchies in which a sandbox gets a directory, in the order in which it enters them.
USED_V1_CONTROLLERS = ("memory", "pids", "cpu", "cpuacct", "blkio", "freezer", "devices")

MOUNTINFO = "/proc/self/mountinfo"
_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_MAX_COMPONENTS = 8


class Mode(enum.StrEnum):
    """Which generations of cgroups this host mounts."""

    V1 = "v1"
    HYBRID = "hybrid"  # v1 controllers, and a v2 tree that serves kill, freeze and populated
    V2 = "v2"


@dataclass(frozen=True, slots=True)
class Layout:
    """The cgroup mounts of one host."""

    mode: Mode
    v1: Mapping[str, str]  # controller -> mount point; controllers may share one
    v2: str | None  # mount point
    v2_controllers: frozenset[str]  # offered by the v2 tree's root

    def hierarchies(self) -> dict[str, str]:
        """Return the hierarchies a sandbox has a directory in.

        Keys are as in /proc/PID/cgroup: a comma-separated controller list, or "" for v2. Values
        are mount points. v2 comes last, so that a process counted as "populated" there is
        already inside every limit.
        """
        result: dict[str, str] = {}
        seen: set[str] = set()
        for controller in USED_V1_CONTROLLERS:
            mount_point = self.v1.get(controller)
            if mount_point is None or mount_point in seen:
                continue
            seen.add(mount_point)
            shared = sorted(name for name, point in self.v1.items() if point == mount_point)
            result[",".join(shared)] = mount_point
        if self.v2 is not None:
            result[""] = self.v2
        return result

    def directory(self, controller: str, path: str) -> str:
        """Return the directory of cgroup `path` for a v1 controller, or for v2 if ""."""
        if controller:
            return f"{self.v1[controller]}/{path}"
        assert self.v2 is not None  # the planner uses "" only where v2 is mounted
        return f"{self.v2}/{path}"


def check_path(path: str) -> str:
    """Return `path` if it is a safe relative cgroup path.

    Raises SpecError for an empty or absolute path, "..", hidden or odd names. A name with a dot
    could be a control file ("memory.max"); mkdir would then fail with EEXIST, never overwrite.
    """
    parts = path.split("/")
    if len(parts) > _MAX_COMPONENTS or not all(_COMPONENT.fullmatch(part) for part in parts):
        raise SpecError(f"unsafe cgroup path {path!r}", field="linux.cgroupsPath")
    return path


def _unescape(text: str) -> str:
    # proc_pid_mountinfo(5): space, tab, newline and backslash are octal escapes.
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def parse_layout(mountinfo: str, v2_controllers: str) -> Layout:
    """Read the cgroup mounts out of /proc/PID/mountinfo.

    `v2_controllers` is the content of cgroup.controllers at the v2 root ("" if there is none).
    Only mounts of a whole hierarchy count: a mount whose root is a sub-directory shows paths
    that do not match /proc/PID/cgroup. Raises HostError if nothing usable is mounted.
    """
    v1: dict[str, str] = {}
    v2: str | None = None
    for line in mountinfo.split("\n"):
        left, separator, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if not separator or len(fields) < 6 or len(tail) < 3 or fields[3] != "/":
            continue
        mount_point, fstype, options = _unescape(fields[4]), tail[0], tail[2].split(",")
        if fstype == "cgroup2" and v2 is None:
            v2 = mount_point
        elif fstype == "cgroup":
            for controller in _KNOWN_V1_CONTROLLERS.intersection(options):
                v1.setdefault(controller, mount_point)
    if v1:
        mode = Mode.V1 if v2 is None else Mode.HYBRID
    elif v2 is not None:
        mode = Mode.V2
    else:
        raise HostError(
            "no cgroup hierarchy is mounted",
            feature="cgroup",
            hint="mount -t cgroup2 none /sys/fs/cgroup",
        )
    offered = frozenset(v2_controllers.split()) if v2 is not None else frozenset()
    return Layout(mode=mode, v1=MappingProxyType(v1), v2=v2, v2_controllers=offered)


def parse_others(mountinfo: str, layout: Layout) -> list[str]:
    """Where hierarchies are mounted in which a sandbox has no directory: cpuset, name=systemd."""
    used = set(layout.hierarchies().values())
    others = []
    for line in mountinfo.split("\n"):
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        if not right.startswith("cgroup ") or len(fields) < 6 or fields[3] != "/":
            continue
        if _unescape(fields[4]) not in used:
            others.append(_unescape(fields[4]))
    return others


def remove_from_others(layout: Layout, path: str) -> None:
    """Remove what another runtime made of cgroup `path` in hierarchies that are not ours.

    Parents go, too, once they are empty. Kills nothing; what still holds a process stays.
    """
    with open(MOUNTINFO, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        others = parse_others(file.read(), layout)
    for mount_point in others:
        name = check_path(path)
        while name:
            try:
                os.rmdir(f"{mount_point}/{name}")
            except FileNotFoundError:
                pass
            except OSError:  # another's
                break
            name = name.rpartition("/")[0]


def read_layout() -> Layout:
    """Return this host's layout. Raises HostError if no cgroup hierarchy is mounted."""
    with open(MOUNTINFO, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        mountinfo = file.read()
    without_controllers = parse_layout(mountinfo, "")
    if without_controllers.v2 is None:
        return without_controllers
    path = os.path.join(without_controllers.v2, "cgroup.controllers")
    with open(path, encoding="ascii") as file:
        return parse_layout(mountinfo, file.read())
