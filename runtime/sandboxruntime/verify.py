"""Outside verification: what Linux says of a confined process, held against its spec.

Run by the root side through /proc before the process receives environment, key or sockets. What is
read is Linux's word and not the process's: a child of a zygote may be one of a hostile image's, so
pid 1, which has the same user namespace, is looked at, too. Any mismatch raises VerifyError, and
the caller kills the container.
"""

from __future__ import annotations

import errno
import functools
import math
import os
import re
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from sandboxruntime.cgroup import Cgroup
from sandboxruntime.errors import VerifyError
from sandboxruntime.mounts import (
    ATTRIBUTE_WORDS,
    DEVICE_ATTRIBUTES,
    DEVICES,
    Attach,
    FileSystem,
    plan_mounts,
)
from sandboxruntime.namespaces import render_map
from sandboxruntime.rlimits import DEFAULTS
from sandboxruntime.spec import HAND_OVER_DIR, IdMapping, Spec
from sandboxruntime.syscalls import MountAttr

__all__ = [
    "NAMESPACES",
    "Facts",
    "check",
    "check_status",
    "count_filters",
    "read_facts",
    "read_limits",
    "read_mountinfo",
    "root_device",
    "start_ticks",
    "verify",
    "verify_alone",
    "verify_init",
    "verify_running",
]

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
SHARED_BY_ZYGOTES = ("cgroup", "user")
_CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
SECCOMP_MODE_FILTER = "2"
# Linux, fs/proc/base.c: lnames.
_LIMITS = {
    "cpu time": "RLIMIT_CPU", "file size": "RLIMIT_FSIZE", "data size": "RLIMIT_DATA",
    "stack size": "RLIMIT_STACK", "core file size": "RLIMIT_CORE", "resident set": "RLIMIT_RSS",
    "processes": "RLIMIT_NPROC", "open files": "RLIMIT_NOFILE",
    "locked memory": "RLIMIT_MEMLOCK", "address space": "RLIMIT_AS", "file locks": "RLIMIT_LOCKS",
    "pending signals": "RLIMIT_SIGPENDING", "msgqueue size": "RLIMIT_MSGQUEUE",
    "nice priority": "RLIMIT_NICE", "realtime priority": "RLIMIT_RTPRIO",
    "realtime timeout": "RLIMIT_RTTIME",
}  # fmt: skip
# 0, 1, 2 and the hand-over socket; pid 1 has the exit pipe instead of the socket.
_FDS_MAX = 4


@dataclass(frozen=True, slots=True)
class Facts:
    """What /proc says of one process."""

    pid: int
    namespaces: Mapping[str, int]
    status: Mapping[str, str]
    uid_map: str
    gid_map: str
    cgroup: str
    mountinfo: str
    descriptors: Mapping[int, str]
    cwd: str
    limits: Mapping[str, tuple[float, float]]  # OCI's names; soft and hard, inf for unlimited
    setgroups: str


def read_facts(pid: int) -> Facts:
    """Read everything once. OSError if the process is gone."""
    base = f"/proc/{pid}"
    return Facts(
        pid=pid,
        namespaces={name: os.stat(f"{base}/ns/{name}").st_ino for name in NAMESPACES},
        status=_read_status(pid),
        uid_map=_read(f"{base}/uid_map"),
        gid_map=_read(f"{base}/gid_map"),
        cgroup=_read(f"{base}/cgroup"),
        mountinfo=read_mountinfo(pid),
        descriptors={int(fd): os.readlink(f"{base}/fd/{fd}") for fd in os.listdir(f"{base}/fd")},
        cwd=os.readlink(f"{base}/cwd"),
        limits=read_limits(_read(f"{base}/limits")),
        setgroups=_read(f"{base}/setgroups").strip(),
    )


def read_limits(text: str) -> dict[str, tuple[float, float]]:
    """What proc_pid_limits(5) says, by OCI's names, of what Linux has always had. Pure."""
    lines = re.findall(r"^Max (.+?) {2,}(\S+) +(\S+)", text, re.MULTILINE)
    return {
        _LIMITS[name]: (_limit(soft), _limit(hard)) for name, soft, hard in lines if name in _LIMITS
    }


def _limit(text: str) -> float:
    return math.inf if text == "unlimited" else int(text)


def read_mountinfo(pid: int, *, errors: str = "surrogateescape") -> str:
    """What a process has mounted (proc_pid_mountinfo(5)). OSError if it is gone.

    Of one that has ended and waits to be reaped Linux says EINVAL (fs/proc_namespace.c): here it
    is ProcessLookupError.
    """
    try:
        return _read(f"/proc/{pid}/mountinfo", errors)
    except OSError as exc:
        if exc.errno == errno.EINVAL:
            raise ProcessLookupError(errno.ESRCH, f"process {pid} has ended") from exc
        raise


def _read_status(pid: int) -> dict[str, str]:
    # By "\n" alone, here and below: the name of a process, or of a folder, may hold what
    # splitlines() takes for the end of a line.
    lines = _read(f"/proc/{pid}/status").split("\n")
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def _read(path: str, errors: str = "surrogateescape") -> str:
    with open(path, encoding="utf-8", errors=errors, newline="\n") as stream:
        return stream.read()


def verify(
    facts: Facts, spec: Spec, cgroup: Cgroup, host_namespaces: Mapping[str, int], *, filters: int,
    root: str,
) -> None:  # fmt: skip
    """Check what was read of a process that waits for its hand-over.

    `filters` is how many seccomp filters it must have: a zygote's child has its parent's, too.
    `root` is the device ("0:57") of the overlay that was made for it: a zygote's child knows
    others.
    Raises VerifyError naming the first check that failed.
    """
    check(facts, spec, host_namespaces, filters=filters)
    if (found := root_device(facts.mountinfo)) != root:
        raise VerifyError(f"its root is {found or 'nothing'}, not {root}", check="root")
    mismatches = cgroup.check_membership(facts.cgroup)
    if mismatches:
        raise VerifyError(f"the process is outside its cgroup: {mismatches}", check="cgroup")
    if missing := cgroup.check_devices():
        raise VerifyError(f"devices are open to it: {missing}", check="devices")


def root_device(mountinfo: str) -> str:
    """The device of a process's root file system, "" for none. Pure."""
    roots = _roots(_parse_mountinfo(mountinfo))
    return roots[0].device if len(roots) == 1 else ""


def _roots(mounts: list[_Mount]) -> list[_Mount]:
    """What is mounted at /. They are listed in the order in which they were made, not by place."""
    return [mount for mount in mounts if mount.point == "/"]


def verify_alone(cgroup: Cgroup, pids: Iterable[int]) -> None:
    """Check that nobody else is in a container's cgroup, unseen. Raises VerifyError."""
    others = set(cgroup.members()) - set(pids)
    if others:
        raise VerifyError(f"processes {sorted(others)[:5]} are in it, too", check="alone")


def verify_running(
    facts: Facts, spec: Spec, cgroup: Cgroup, host_namespaces: Mapping[str, int], *, filters: int
) -> None:
    """Check a program that runs already, for whoever takes it over. Raises VerifyError.

    What it may have changed is left out: descriptors, directory, limits lowered, filters added.
    """
    _raise_first(
        {
            "namespaces": lambda: _check_namespaces(facts, spec, host_namespaces),
            "credentials": lambda: _check_credentials(facts.status, spec),
            "id_maps": lambda: _check_id_maps(facts, spec),
            "capabilities": lambda: _check_capabilities(facts.status),
            "no_new_privs": lambda: _expect(facts.status, "NoNewPrivs", "1"),
            "seccomp": lambda: (
                _expect(facts.status, "Seccomp", SECCOMP_MODE_FILTER)
                or _at_least(facts.status, "Seccomp_filters", filters)
            ),
            "mounts": lambda: _check_mounts(facts, spec),
            "cgroup": lambda: "; ".join(cgroup.check_membership(facts.cgroup)) or None,
            "devices": lambda: "; ".join(cgroup.check_devices()) or None,
        }
    )


def verify_init(pid: int, pidfd: int, spec: Spec, *, filters: int) -> None:
    """Check pid 1 of a container once it has said that it is confined.

    A capability that it kept would be one over everything in the container. Raises VerifyError.
    """
    try:
        status = _read_status(pid)
        signal.pidfd_send_signal(pidfd, 0)  # so what was read was read of this process
    except (FileNotFoundError, ProcessLookupError) as exc:
        raise VerifyError(f"pid 1 of the container ({pid}) has ended", check="init") from exc
    check_status(status, spec, filters=filters)


def check_status(status: Mapping[str, str], spec: Spec, *, filters: int) -> None:
    """Every check of what proc_pid_status(5) says. Pure. Raises VerifyError."""
    _raise_first(
        {
            "credentials": lambda: _check_credentials(status, spec),
            "capabilities": lambda: _check_capabilities(status),
            "no_new_privs": lambda: _expect(status, "NoNewPrivs", "1"),
            "seccomp": lambda: (
                _expect(status, "Seccomp", SECCOMP_MODE_FILTER)
                or _expect(status, "Seccomp_filters", str(filters))
            ),
        }
    )


def check(facts: Facts, spec: Spec, host_namespaces: Mapping[str, int], *, filters: int) -> None:
    """Every check that needs only facts and spec. Pure. Raises VerifyError."""
    check_status(facts.status, spec, filters=filters)
    _raise_first(
        {
            "namespaces": lambda: _check_namespaces(facts, spec, host_namespaces),
            "id_maps": lambda: _check_id_maps(facts, spec),
            "descriptors": lambda: _check_descriptors(facts),
            "cwd": lambda: None if facts.cwd == "/" else f"cwd is {facts.cwd}",
            "rlimits": lambda: _check_rlimits(facts, spec),
            "mounts": lambda: _check_mounts(facts, spec),
        }
    )


def _raise_first(checks: Mapping[str, Callable[[], str | None]]) -> None:
    for name, function in checks.items():
        problem = function()
        if problem:
            raise VerifyError(f"outside verification failed at {name}: {problem}", check=name)


def start_ticks(pid: int) -> int:
    """When a process was started, in clock ticks after boot (proc_pid_stat(5), starttime)."""
    # The name, in parentheses, may hold anything; the fields are counted from behind it.
    return int(_read(f"/proc/{pid}/stat").rpartition(")")[2].split()[19])


def count_filters() -> int:
    """How many seccomp filters this process is under, and so what it starts (proc(5), status)."""
    status = _read("/proc/self/status")
    found = re.search(r"^Seccomp_filters:\s+(\d+)", status, re.MULTILINE)
    return int(found.group(1)) if found else 0


def _expect(status: Mapping[str, str], key: str, value: str) -> str | None:
    found = status.get(key, "missing").strip()
    return None if found == value else f"{key} is {found}, not {value}"


def _at_least(status: Mapping[str, str], key: str, least: int) -> str | None:
    found = int(status.get(key, "0"))
    return None if found >= least else f"{key} is {found}, less than {least}"


def _check_namespaces(facts: Facts, spec: Spec, host: Mapping[str, int]) -> str | None:
    own = [n for n in NAMESPACES if not (spec.zygote and n in SHARED_BY_ZYGOTES)]
    shared = [name for name in own if facts.namespaces[name] == host[name]]
    return f"shared with the host: {', '.join(shared)}" if shared else None


def _host_id(inside: int, mappings: Iterable[IdMapping]) -> int:
    for mapping in mappings:
        if 0 <= inside - mapping.container_id < mapping.size:
            return mapping.host_id + inside - mapping.container_id
    return -1


def _check_credentials(status: Mapping[str, str], spec: Spec) -> str | None:
    for key, inside, mappings in (
        ("Uid", spec.process.uid, spec.uid_mappings),
        ("Gid", spec.process.gid, spec.gid_mappings),
    ):
        wanted = inside if spec.zygote else _host_id(inside, mappings)
        if status[key].split() != [str(wanted)] * 4:
            return f"{key.lower()}s are {status[key].split()}, not {wanted}"
    if status["Groups"].strip():
        return f"supplementary groups {status['Groups'].strip()}"
    return None


def _check_id_maps(facts: Facts, spec: Spec) -> str | None:
    if spec.zygote:
        return None  # it is in the host's user namespace, where it is nobody
    for found, mappings in ((facts.uid_map, spec.uid_mappings), (facts.gid_map, spec.gid_mappings)):
        if found.split() != render_map(mappings).split():
            return f"map is {found.split()}, not {render_map(mappings).split()}"
    if spec.executor is None and facts.setgroups != "deny":  # OCI has no word for it
        return f"setgroups is {facts.setgroups}, not deny"
    return None


def _check_rlimits(facts: Facts, spec: Spec) -> str | None:
    for name, (soft, hard) in {**DEFAULTS, **spec.process.rlimits}.items():
        found = facts.limits.get(name, (math.inf, math.inf))
        if found[0] > soft or found[1] > hard:
            return f"{name} is {found}, above ({soft}, {hard})"
    return None


def _check_capabilities(status: Mapping[str, str]) -> str | None:
    held = [name for name in _CAPABILITY_SETS if int(status[name], 16)]
    return f"not empty: {', '.join(held)}" if held else None


def _check_descriptors(facts: Facts) -> str | None:
    if len(facts.descriptors) > _FDS_MAX:
        return f"{len(facts.descriptors)} descriptors are open: {dict(facts.descriptors)}"
    for fd, target in facts.descriptors.items():
        if not (target == "/dev/null" or target.startswith(("pipe:[", "socket:["))):
            return f"descriptor {fd} is {target}"
    return None


@dataclass(frozen=True, slots=True)
class _Mount:
    point: str
    device: str
    root: str  # what of its file system is mounted
    options: frozenset[str]
    fstype: str


def _parse_mountinfo(text: str) -> list[_Mount]:
    mounts = []
    for line in filter(None, text.split("\n")):
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        point = fields[4]
        if "\\" in point:
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), point)
        if any(option.startswith(("shared:", "master:")) for option in fields[6:]):
            point = f"{point} (propagating)"
        options = frozenset(fields[5].split(","))
        mounts.append(_Mount(point, fields[2], fields[3], options, right.split(" ")[0]))
    return mounts


@functools.cache
def _has_entry(path: str) -> bool:
    """Whether every /proc of this Linux has this entry; paths elsewhere may be missing inside."""
    return path.startswith("/proc/") and os.path.lexists(path)


def _check_mounts(facts: Facts, spec: Spec) -> str | None:
    mounts = _parse_mountinfo(facts.mountinfo)
    roots = _roots(mounts)
    if [root.fstype for root in roots] != ["overlay"]:
        return f"root is not one overlay: {roots}"
    expected = _expected_flags(spec)
    masks = {
        *spec.masked_paths,
        *spec.read_only_paths,
        *(f"{bind.destination}/{name}" for bind in spec.binds for name in bind.masked),
    }
    points = [mount.point for mount in mounts]
    paths = (*spec.masked_paths, *spec.read_only_paths)
    missing = (set(expected) | {path for path in paths if _has_entry(path)}) - set(points)
    extra = set(points) - set(expected) - masks
    if missing or extra:
        return f"mounts missing {sorted(missing)}, unexpected {sorted(extra)}"
    read_only = {*spec.read_only_paths, *(b.destination for b in spec.binds if b.read_only)}
    cover = MountAttr(0) if spec.executor is not None else DEVICE_ATTRIBUTES
    for mount in mounts:
        flags = expected.get(mount.point, cover)
        wanted = _words(flags)
        if not wanted <= mount.options:
            return f"{mount.point} lacks {','.join(sorted(wanted - mount.options))}"
        if mount.point in read_only and "ro" not in mount.options:
            return f"{mount.point} is writable"
        if mount.point in masks - read_only and not _covers(mount):
            return f"{mount.point} is masked by {mount.root} of {mount.fstype}"
    return None


@functools.cache
def _words(flags: MountAttr) -> frozenset[str]:
    return frozenset(word for flag, word in ATTRIBUTE_WORDS.items() if flag & flags)


def _expected_flags(spec: Spec) -> dict[str, MountAttr]:
    """Every mount that is not there to cover, and what it must not allow. Pure.

    OCI has no word for the flags of a device, or of a mask: in another runtime's containers they
    are as that runtime makes them.
    """
    safe = MountAttr.NOSUID | MountAttr.NODEV
    found = {"/": safe}
    for name in DEVICES:
        found[f"/dev/{name}"] = DEVICE_ATTRIBUTES if spec.executor is None else MountAttr(0)
    for operation in plan_mounts(spec):
        match operation:
            case FileSystem():
                found[operation.destination] = operation.attributes
            case Attach():
                found[operation.destination] = safe
    if spec.executor is not None:
        found[HAND_OVER_DIR] = safe  # OCI has no word for a directory, but for a file system
    return found


def _covers(mount: _Mount) -> bool:
    """Whether nothing can be read through it: the null device, or a directory that stays empty."""
    return mount.root == "/null" or (mount.fstype == "tmpfs" and "ro" in mount.options)
