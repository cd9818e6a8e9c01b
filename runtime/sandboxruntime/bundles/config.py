"""config.json of an OCI bundle: parsed once, checked once. Pure.

Source: OCI runtime-spec, config.md and config-linux.md. Members that no version of the
specification knows are ignored, as it demands; members that it knows and that would be silently
without effect here are refused.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sandboxruntime.bundles.capability_names import capability_mask
from sandboxruntime.cgroup import IoLimit, Limits
from sandboxruntime.errors import SpecError
from sandboxruntime.spec import IdMapping

__all__ = [
    "CAPABILITY_SETS",
    "HOOKS",
    "Config",
    "Device",
    "DeviceRule",
    "Hook",
    "Mount",
    "Process",
    "parse_config",
    "parse_process",
]

CAPABILITY_SETS = ("bounding", "effective", "inheritable", "permitted", "ambient")
HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
NAMESPACES = ("pid", "network", "mount", "ipc", "uts", "user", "cgroup")
PROPAGATIONS = ("", "private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable",
                "runbindable")  # fmt: skip
_JOINABLE = ("pid", "network", "ipc", "uts")
_UNLIMITED_SWAP = 1 << 60
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Mount:
    """One of `mounts`; `destination` is absolute and normalised."""

    destination: str
    type: str
    source: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Process:
    """`process`. Capabilities are masks, by the name of their set."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    umask: int
    capabilities: Mapping[str, int]
    rlimits: Mapping[str, tuple[int, int]]
    no_new_privileges: bool
    terminal: bool
    oom_score_adj: int | None


@dataclass(frozen=True, slots=True)
class Device:
    """One of `linux.devices`: a node to make. `type` is c, b, u or p."""

    path: str
    type: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class DeviceRule:
    """One of `linux.resources.devices`, as a line of the devices controller."""

    allow: bool
    line: str


@dataclass(frozen=True, slots=True)
class Hook:
    """A program that is told the container's state. `timeout` in seconds; None waits for ever."""

    path: str
    args: tuple[str, ...]
    env: Mapping[str, str]
    timeout: float | None


@dataclass(frozen=True, slots=True)
class Config:
    """A whole config.json. `namespaces` maps a type to a path to join, or to "" for a new one."""

    version: str
    root: str
    read_only: bool
    hostname: str
    domainname: str
    mounts: tuple[Mount, ...]
    process: Process
    namespaces: Mapping[str, str]
    uid_mappings: tuple[IdMapping, ...]
    gid_mappings: tuple[IdMapping, ...]
    devices: tuple[Device, ...]
    device_rules: tuple[DeviceRule, ...]
    limits: Limits
    sysctl: Mapping[str, str]
    masked_paths: tuple[str, ...]
    read_only_paths: tuple[str, ...]
    propagation: str
    seccomp: Mapping[str, Any] | None
    cgroups_path: str
    hooks: Mapping[str, tuple[Hook, ...]] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


class _Object:
    """A JSON object whose members are taken by name and type; errors name the whole path."""

    def __init__(self, data: Any, path: str) -> None:
        if not isinstance(data, dict):
            raise SpecError(f"{path} is {_kind(data)}, not an object", field=path)
        self._data, self.path = data, path

    def where(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def take(self, name: str, kind: type[T], default: T) -> T:
        """A member; null counts as missing."""
        value = self._data.get(name)
        if value is None:
            return default
        wanted: Any = (int, float) if kind is float else kind
        if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
            raise SpecError(
                f"{self.where(name)} is {_kind(value)}, not {_kind(default)}",
                field=self.where(name),
            )
        return value  # type: ignore[no-any-return]

    def demand(self, name: str, kind: type[T], example: T) -> T:
        if self._data.get(name) is None:
            raise SpecError(f"{self.where(name)} is missing", field=self.where(name))
        return self.take(name, kind, example)

    def optional(self, name: str) -> int | None:
        return self.take(name, int, 0) if self._data.get(name) is not None else None

    def object(self, name: str) -> _Object:
        return _Object(self._data.get(name) or {}, self.where(name))

    def objects(self, name: str) -> list[_Object]:
        found = self.take(name, list, [])
        return [_Object(item, f"{self.where(name)}[{i}]") for i, item in enumerate(found)]

    def strings(self, name: str) -> tuple[str, ...]:
        return tuple(_Object({"x": s}, self.where(name)).demand("x", str, "") for s in
                     self.take(name, list, []))  # fmt: skip

    def numbers(self, name: str) -> tuple[int, ...]:
        return tuple(_Object({"x": n}, self.where(name)).demand("x", int, 0) for n in
                     self.take(name, list, []))  # fmt: skip

    def texts(self, name: str) -> dict[str, str]:
        found = self.object(name)
        return {key: found.demand(key, str, "") for key in found._data}

    def refuse(self, *names: str) -> None:
        """What would have no effect here must not be asked for. Empty is not asking."""
        for name in names:
            value = self._data.get(name)
            if value not in (None, "", 0, False, [], {}):
                raise SpecError(
                    f"{self.where(name)} is {json.dumps(value)[:80]}, which this runtime cannot do",
                    field=self.where(name),
                )


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean",
             int: "a whole number", float: "a number", type(None): "null"}  # fmt: skip
    return names.get(type(value), type(value).__name__)


def parse_config(data: Any) -> Config:
    """Parse and check a whole config.json. Raises SpecError naming the member."""
    top = _Object(data, "")
    version = top.demand("ociVersion", str, "")
    if not version.startswith("1."):
        raise SpecError(f"ociVersion is {version!r}, and 1.x is what this runtime knows",
                        field="ociVersion")  # fmt: skip
    top.refuse("solaris", "windows", "vm", "zos")
    root, linux = top.object("root"), top.object("linux")
    linux.refuse("intelRdt", "personality", "timeOffsets", "mountLabel")
    namespaces = _namespaces(linux)
    resources = linux.object("resources")
    hostname, domainname = top.take("hostname", str, ""), top.take("domainname", str, "")
    if (hostname or domainname) and "uts" not in namespaces:
        raise SpecError("hostname without a uts namespace would be the host's", field="hostname")
    propagation = linux.take("rootfsPropagation", str, "")
    if propagation not in PROPAGATIONS:
        raise SpecError(f"linux.rootfsPropagation is {propagation!r}",
                        field="linux.rootfsPropagation")  # fmt: skip
    return Config(
        version=version,
        root=root.demand("path", str, ""),
        read_only=root.take("readonly", bool, False),
        hostname=hostname,
        domainname=domainname,
        mounts=tuple(_mount(item) for item in top.objects("mounts")),
        process=parse_process(top.object("process")),
        namespaces=namespaces,
        uid_mappings=_mappings(linux, "uidMappings", namespaces),
        gid_mappings=_mappings(linux, "gidMappings", namespaces),
        devices=tuple(_device(item) for item in linux.objects("devices")),
        device_rules=tuple(_device_rule(item) for item in resources.objects("devices")),
        limits=_limits(resources),
        sysctl=_sysctl(linux.texts("sysctl"), namespaces),
        masked_paths=_absolute(linux, "maskedPaths"),
        read_only_paths=_absolute(linux, "readonlyPaths"),
        propagation=propagation,
        seccomp=linux.take("seccomp", dict, {}) or None,
        cgroups_path=linux.take("cgroupsPath", str, ""),
        hooks={name: tuple(map(_hook, top.object("hooks").objects(name))) for name in HOOKS},
        annotations=top.texts("annotations"),
    )


def parse_process(process: Any) -> Process:
    """Parse `process`, of a config.json or of a file of its own (exec --process)."""
    process = process if isinstance(process, _Object) else _Object(process, "process")
    process.refuse("selinuxLabel", "apparmorProfile", "scheduler", "ioPriority", "execCPUAffinity",
                   "commandLine")  # fmt: skip
    user = process.object("user")
    args, cwd = process.strings("args"), process.demand("cwd", str, "")
    if not args or not args[0]:
        raise SpecError("process.args is empty", field="process.args")
    if not cwd.startswith("/"):
        raise SpecError(f"process.cwd {cwd!r} is not absolute", field="process.cwd")
    sets = process.object("capabilities")
    rlimits: dict[str, tuple[int, int]] = {}
    for item in process.objects("rlimits"):
        name = item.demand("type", str, "")
        if name in rlimits:
            raise SpecError(f"{name} is limited twice", field="process.rlimits")
        rlimits[name] = (item.demand("soft", int, 0), item.demand("hard", int, 0))
    return Process(
        args=args,
        env=process.strings("env"),
        cwd=_plain(cwd),
        uid=user.take("uid", int, 0),
        gid=user.take("gid", int, 0),
        groups=user.numbers("additionalGids"),
        umask=0o022 if user.optional("umask") is None else user.take("umask", int, 0),
        capabilities={name: capability_mask(sets.strings(name)) for name in CAPABILITY_SETS},
        rlimits=rlimits,
        no_new_privileges=process.take("noNewPrivileges", bool, False),
        terminal=process.take("terminal", bool, False),
        oom_score_adj=process.optional("oomScoreAdj"),
    )


def _namespaces(linux: _Object) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in linux.objects("namespaces"):
        kind, path = item.demand("type", str, ""), item.take("path", str, "")
        if kind not in NAMESPACES:
            raise SpecError(f"{item.path}: this runtime has no {kind} namespaces", field=item.path)
        if kind in found:
            raise SpecError(f"{item.path}: a second {kind} namespace", field=item.path)
        if path and kind not in _JOINABLE:
            raise SpecError(f"{item.path}: a {kind} namespace cannot be joined", field=item.path)
        found[kind] = path
    if "mount" not in found:
        raise SpecError("linux.namespaces has no mount namespace: the root would be the host's",
                        field="linux.namespaces")  # fmt: skip
    return found


def _mappings(linux: _Object, name: str, namespaces: Mapping[str, str]) -> tuple[IdMapping, ...]:
    found = tuple(
        IdMapping(item.demand("containerID", int, 0), item.demand("hostID", int, 0),
                  item.demand("size", int, 1))
        for item in linux.objects(name)
    )  # fmt: skip
    if bool(found) != ("user" in namespaces):
        raise SpecError(f"linux.{name} and a user namespace come together or not at all",
                        field=f"linux.{name}")  # fmt: skip
    return found


def _mount(item: _Object) -> Mount:
    item.refuse("uidMappings", "gidMappings")
    destination = item.demand("destination", str, "")
    # OCI 1.0 deprecates relative destinations and has them mean this.
    return Mount(_plain(destination), item.take("type", str, ""), item.take("source", str, ""),
                 item.strings("options"))  # fmt: skip


def _device(item: _Object) -> Device:
    kind = item.demand("type", str, "")
    if kind not in ("c", "b", "u", "p"):
        raise SpecError(f"{item.path}.type is {kind!r}, not one of c, b, u, p", field=item.path)
    return Device(
        path=_plain(item.demand("path", str, "")),
        type=kind,
        major=item.take("major", int, 0),
        minor=item.take("minor", int, 0),
        mode=item.take("fileMode", int, 0o666) & 0o7777,
        uid=item.take("uid", int, 0),
        gid=item.take("gid", int, 0),
    )


def _device_rule(item: _Object) -> DeviceRule:
    kind, access = item.take("type", str, "a"), item.take("access", str, "rwm") or "rwm"
    if kind not in ("a", "b", "c") or set(access) - set("rwm"):
        raise SpecError(f"{item.path} is neither a, b, c nor of r, w, m", field=item.path)
    numbers = ["*" if n is None or n < 0 else str(n) for n in
               (item.optional("major"), item.optional("minor"))]  # fmt: skip
    line = "a" if kind == "a" else f"{kind} {':'.join(numbers)} {access}"
    return DeviceRule(item.demand("allow", bool, False), line)


def _limits(resources: _Object) -> Limits:
    resources.refuse("hugepageLimits", "network", "rdma", "unified")
    memory, cpu, pids = (resources.object(name) for name in ("memory", "cpu", "pids"))
    memory.refuse("kernel", "kernelTCP", "disableOOMKiller", "reservation")
    cpu.refuse("realtimeRuntime", "realtimePeriod", "cpus", "mems", "burst", "idle")
    limit, swap = memory.take("limit", int, 0), memory.take("swap", int, 0)
    shares, quota = cpu.take("shares", int, 0), cpu.take("quota", int, 0)
    count = pids.take("limit", int, 0)
    swap_bytes = _UNLIMITED_SWAP if swap < 0 else max(0, swap - limit)
    return Limits(
        memory_bytes=limit if limit > 0 else None,
        swap_bytes=swap_bytes if limit > 0 else 0,
        cpu_quota_us=quota if quota > 0 else None,
        cpu_period_us=cpu.take("period", int, 0) or 100_000,
        cpu_weight=max(1, min(10_000, shares * 100 // 1024)) if shares else None,
        pids=count if count > 0 else None,
        io=_io(resources.object("blockIO")),
    )


def _io(block: _Object) -> tuple[IoLimit, ...]:
    block.refuse("weight", "leafWeight", "weightDevice")
    disks: dict[tuple[int, int], dict[str, int]] = {}
    for name, member in (
        ("throttleReadBpsDevice", "read_bytes_per_s"),
        ("throttleWriteBpsDevice", "write_bytes_per_s"),
        ("throttleReadIOPSDevice", "read_ops_per_s"),
        ("throttleWriteIOPSDevice", "write_ops_per_s"),
    ):
        for item in block.objects(name):
            number = item.demand("major", int, 0), item.demand("minor", int, 0)
            disks.setdefault(number, {})[member] = item.demand("rate", int, 0)
    return tuple(IoLimit(*number, **rates) for number, rates in disks.items())


def _sysctl(values: Mapping[str, str], namespaces: Mapping[str, str]) -> Mapping[str, str]:
    """Only what belongs to a namespace of the container's own: the rest would be the host's."""
    owners: tuple[tuple[str, Callable[[str], bool]], ...] = (
        ("network", lambda name: name.startswith("net.")),
        ("uts", lambda name: name in ("kernel.domainname", "kernel.hostname")),
        ("ipc", lambda name: name.startswith(("fs.mqueue.", "kernel.msg", "kernel.shm"))
         or name == "kernel.sem"),
    )  # fmt: skip
    for name in values:
        kind = next((kind for kind, has in owners if has(name)), None)
        if kind is None or ".." in name or "/" in name or namespaces.get(kind) != "":
            raise SpecError(f"linux.sysctl {name!r} is not of a namespace of the container's own",
                            field="linux.sysctl")  # fmt: skip
    return values


def _plain(path: str) -> str:
    """Absolute and normalised. Of two slashes at the beginning, normpath() would keep both."""
    return posixpath.normpath("/" + path.lstrip("/"))


def _absolute(linux: _Object, name: str) -> tuple[str, ...]:
    found: Sequence[str] = linux.strings(name)
    for path in found:
        if not path.startswith("/"):
            raise SpecError(f"linux.{name}: {path!r} is not absolute", field=f"linux.{name}")
    return tuple(map(_plain, found))


def _hook(item: _Object) -> Hook:
    path = item.demand("path", str, "")
    if not path.startswith("/"):
        raise SpecError(f"{item.path}.path {path!r} is not absolute", field=item.path)
    timeout = item.optional("timeout")
    if timeout is not None and timeout < 1:
        raise SpecError(f"{item.path}.timeout is {timeout}; the least is 1", field=item.path)
    env = dict(entry.partition("=")[::2] for entry in item.strings("env"))
    return Hook(path, item.strings("args") or (path,), env, timeout)
