"""The spec of one container: what the daemon plans and the launcher carries out. Pure.

Vocabulary and meaning are those of the OCI runtime spec (config.md, config-linux.md). What OCI
leaves to the caller, the union root filesystem and idmapped binds, is spelled out beside it.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sandboxruntime.cgroup import Limits
from sandboxruntime.errors import SpecError

__all__ = [
    "HAND_OVER_DIR",
    "MASKED_PATHS",
    "READ_ONLY_PATHS",
    "UNMASKED_PROC",
    "Bind",
    "Credentials",
    "Executor",
    "IdMapping",
    "Process",
    "Rootfs",
    "Spec",
    "from_json",
    "prepare_decoding",
    "to_json",
]

HAND_OVER_DIR = "/run/sandboxkernel"  # inside: 0700, the process's own; holds the connection file
UNMASKED_PROC = "/run/root-only"  # of a zygote: 0700, root's, who has no process inside

# moby's default list and the advisories after it (runtime-spec config-linux.md, maskedPaths).
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/bus",
    "/proc/fs",
    "/proc/interrupts",
    "/proc/irq",
    "/proc/kcore",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/latency_stats",
    "/proc/locks",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/sysvipc",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/vmallocinfo",
    "/proc/slabinfo",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/kpagecgroup",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
READ_ONLY_PATHS = (
    "/proc/pressure",  # anybody who can write to it has Linux compute and wake for a trigger (PSI)
    "/proc/sys",
    "/proc/sysrq-trigger",
)


@dataclass(frozen=True, slots=True)
class IdMapping:
    """One line of uid_map or gid_map (user_namespaces(7))."""

    container_id: int
    host_id: int
    size: int


@dataclass(frozen=True, slots=True)
class Credentials:
    """A host user, with whose rights a path is opened. Groups are supplementary."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Bind:
    """A host directory that appears inside at `destination`.

    It is opened with the rights of `opener`. On disk, files belong to `opener`; inside, they
    belong to the container's process (an idmapped mount, mount_setattr(2)); ids of others
    appear as the overflow id and cannot be written. `masked` are paths below it, relative,
    that are covered by an empty read-only directory or file where they exist. `allowed` are
    the folders below which `source` must lie once its symbolic links are resolved. With
    `own_inodes`, locks and watches on it are the container's own, and what is changed in
    `source` meanwhile is undefined inside (overlayfs.rst): for what does not change.
    """

    source: str
    destination: str
    opener: Credentials
    read_only: bool = False
    masked: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ("/",)
    own_inodes: bool = False


@dataclass(frozen=True, slots=True)
class Rootfs:
    """An overlayfs of shared lower layers and one upper directory.

    `lower` is lowest layer first; the directories hold host-root-owned files and are shared
    by idmapped mounts. `upper` and `work` are plain directories owned by the id range.
    Containers with the same `upper` share one overlay mount. `volatile` skips fsync: for
    layers that are thrown away.
    """

    lower: tuple[str, ...]
    upper: str
    work: str
    volatile: bool = False


@dataclass(frozen=True, slots=True)
class Process:
    """The credentials and limits of the container's process; ids are inside ids."""

    uid: int
    gid: int
    rlimits: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Executor:
    """Another OCI runtime that makes the container; None in a spec is this package itself.

    `program` is its name. Pid 1 is ours there, too: it is run by the image's interpreter `python`,
    and finds this package in the directory `packages` inside, which a bind has to put there.
    """

    program: str
    python: str
    packages: str


@dataclass(frozen=True, slots=True)
class Spec:
    """One container. `cgroups_path` is relative to the root of every cgroup hierarchy.

    `writable` are the paths that Landlock leaves writable; sizes are in bytes.

    A `zygote` forks other containers instead of running user code. It has a host uid of its own
    and no user namespace, so its mappings are empty; no Landlock domain, which would forbid its
    children every mount; a second, unmasked /proc that only root can reach, without which Linux
    refuses them a /proc of their own (mount_too_revealing in fs/namespace.c).
    """

    container_id: str
    hostname: str
    rootfs: Rootfs
    process: Process
    uid_mappings: tuple[IdMapping, ...]
    gid_mappings: tuple[IdMapping, ...]
    cgroups_path: str
    limits: Limits
    binds: tuple[Bind, ...] = ()
    shm_bytes: int = 64 << 20
    tmp_bytes: int = 256 << 20
    masked_paths: tuple[str, ...] = MASKED_PATHS
    read_only_paths: tuple[str, ...] = READ_ONLY_PATHS
    writable: tuple[str, ...] = ()
    seccomp_profile: str = "notebook"
    zygote: bool = False
    executor: Executor | None = None


def to_json(value: Any) -> Any:
    """Turn a spec into JSON types."""
    return dataclasses.asdict(value)


T = TypeVar("T")


def from_json(cls: type[T], data: Any, path: str = "spec") -> T:
    """Build a dataclass of this package from JSON types; SpecError names the offending member."""
    return typing.cast(T, _decode(cls, data, path))


def _decode(kind: Any, data: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, data, path)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if data is None:
            return None
        (kind,) = (argument for argument in arguments if argument is not type(None))
        return _decode(kind, data, path)
    if origin is tuple:
        items = _expect(data, (list, tuple), path)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(
                _decode(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(items)
            )
        if len(items) != len(arguments):
            raise SpecError(f"{path} has {len(items)} items, not {len(arguments)}", field=path)
        return tuple(_decode(a, item, path) for a, item in zip(arguments, items, strict=True))
    if origin is dict:
        items = _expect(data, dict, path)
        return {
            str(key): _decode(arguments[1], item, f"{path}.{key}") for key, item in items.items()
        }
    return _expect(data, kind, path)


def _expect(data: Any, kind: Any, path: str) -> Any:
    if not isinstance(data, kind) or (kind is int and isinstance(data, bool)):
        raise SpecError(f"{path} is {type(data).__name__}, not {kind}", field=path)
    return data


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def prepare_decoding(kind: Any = Spec) -> None:
    """Evaluate the annotations now that from_json() will need: many times dearer than decoding."""
    if dataclasses.is_dataclass(kind):
        members: dict[str, Any] = _hints(kind)  # type: ignore[arg-type]  # a class is hashable
        for hint in members.values():
            prepare_decoding(hint)
    for argument in typing.get_args(kind):
        prepare_decoding(argument)


def _decode_dataclass(kind: Any, data: Any, path: str) -> Any:
    members = _expect(data, dict, path)
    hints = _hints(kind)
    unknown = set(members) - set(hints)
    if unknown:
        raise SpecError(f"{path} has unknown members {sorted(unknown)}", field=path)
    values = {name: _decode(hints[name], item, f"{path}.{name}") for name, item in members.items()}
    try:
        return kind(**values)
    except TypeError as exc:
        raise SpecError(f"{path}: {exc}", field=path) from exc
