"""The spec of one container: what the daemon plans and the launcher carries out. Pure.

Vocabulary and meaning are those of the OCI runtime spec (config.md, config-linux.md). What OCI
leaves to the caller, the union root filesystem and idmapped binds, is spelled out beside it.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable
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
    "decoder",
    "from_json",
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
    """Turn a spec into JSON types. Many times sooner than dataclasses.asdict(), which copies."""
    if dataclasses.is_dataclass(value):
        return {name: to_json(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return value


T = TypeVar("T")


def from_json(cls: type[T], data: Any, path: str = "spec") -> T:
    """Build a dataclass of this package from JSON types; SpecError names the offending member."""
    build = decoder(cls)  # type: ignore[arg-type]  # a class is hashable
    return typing.cast(T, build(data, (None, path)))


# Where a value is in its document: the place of what it is a member of, and its own name. It is
# rendered for errors alone.
_Place = tuple[Any, str]
_Decoder = Callable[[Any, _Place], Any]


def _render(place: _Place) -> str:
    parent, name = place
    return name if parent is None else _render(parent) + name


@functools.cache
def decoder(kind: Any) -> _Decoder:
    """What builds a `kind` from JSON types, made once: annotations are dearer than the decoding."""
    if dataclasses.is_dataclass(kind):
        hints: dict[str, Any] = typing.get_type_hints(kind)
        members = {name: (f".{name}", decoder(hint)) for name, hint in hints.items()}
        return functools.partial(_decode_dataclass, kind, members)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return functools.partial(_decode_optional, decoder(inner))
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return functools.partial(_decode_items, decoder(arguments[0]))
    if origin is tuple:
        return functools.partial(_decode_tuple, tuple(map(decoder, arguments)))
    if origin is dict:
        return functools.partial(_decode_dict, decoder(arguments[1]))
    return functools.partial(_expect, kind)


def _expect(kind: Any, data: Any, place: _Place) -> Any:
    if not isinstance(data, kind) or (kind is int and isinstance(data, bool)):
        path = _render(place)
        raise SpecError(f"{path} is {type(data).__name__}, not {kind}", field=path)
    return data


def _decode_optional(inner: _Decoder, data: Any, place: _Place) -> Any:
    return None if data is None else inner(data, place)


def _decode_items(inner: _Decoder, data: Any, place: _Place) -> Any:
    items = _expect((list, tuple), data, place)
    return tuple(inner(item, (place, f"[{index}]")) for index, item in enumerate(items))


def _decode_tuple(inner: tuple[_Decoder, ...], data: Any, place: _Place) -> Any:
    items = _expect((list, tuple), data, place)
    if len(items) != len(inner):
        path = _render(place)
        raise SpecError(f"{path} has {len(items)} items, not {len(inner)}", field=path)
    return tuple(decode(item, place) for decode, item in zip(inner, items, strict=True))


def _decode_dict(inner: _Decoder, data: Any, place: _Place) -> Any:
    items = _expect(dict, data, place)
    return {str(key): inner(item, (place, f".{key}")) for key, item in items.items()}


def _decode_dataclass(
    kind: Any, members: dict[str, tuple[str, _Decoder]], data: Any, place: _Place
) -> Any:
    found = _expect(dict, data, place)
    values = {}
    for name, item in found.items():
        if name not in members:
            path, unknown = _render(place), sorted(set(found) - set(members))
            raise SpecError(f"{path} has unknown members {unknown}", field=path)
        own, decode = members[name]
        values[name] = decode(item, (place, own))
    try:
        return kind(**values)
    except TypeError as exc:
        path = _render(place)
        raise SpecError(f"{path}: {exc}", field=path) from exc
