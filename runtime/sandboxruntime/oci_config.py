"""From a spec to the config.json of an OCI bundle, for other runtimes. Pure.

Meaning and names are those of the OCI runtime spec (config.md, config-linux.md); the result is
valid against its JSON schema. What a spec has beside OCI, the union root file system and idmapped
binds, is mounted before: `rootfs` and `binds` are the paths where that was done.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sandboxruntime import seccomp
from sandboxruntime.cgroup import Limits
from sandboxruntime.cgroup.v1 import cpu_shares
from sandboxruntime.mounts import ATTRIBUTE_WORDS, FileSystem, plan_mounts
from sandboxruntime.spec import HAND_OVER_DIR, IdMapping, Spec

__all__ = ["OCI_VERSION", "oci_config", "oci_seccomp"]

OCI_VERSION: Final = "1.0.2"
HAND_OVER_BYTES: Final = 16 << 20
_NAMESPACES: Final = ("pid", "network", "ipc", "uts", "mount", "user", "cgroup")
_CAPABILITY_SETS: Final = ("bounding", "effective", "inheritable", "permitted", "ambient")
_ARCHITECTURES: Final = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}
_DEFAULT_ERRNO: Final = 0xFFFF  # the part of a SECCOMP_RET_ERRNO that is the errno
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000


def oci_config(
    spec: Spec,
    *,
    rootfs: str,
    binds: Sequence[str],
    args: Sequence[str],
    env: Mapping[str, str],
    rlimits: Mapping[str, tuple[int, int]],
    machine: str,
) -> dict[str, Any]:
    """The config.json of a container that is as confined as a spec says.

    `binds` are the sources of the spec's binds, in order; `args` and `env` are its first program.
    """
    masked = [*spec.masked_paths]
    for bind in spec.binds:
        masked += [f"{bind.destination}/{name}" for name in bind.masked]
    return {
        "ociVersion": OCI_VERSION,
        "root": {"path": rootfs, "readonly": False},
        "hostname": spec.hostname,
        "process": {
            "terminal": False,
            "user": {"uid": spec.process.uid, "gid": spec.process.gid},
            "args": [*args],
            "env": [f"{name}={value}" for name, value in env.items()],
            "cwd": "/",
            "capabilities": {name: [] for name in _CAPABILITY_SETS},
            "rlimits": [
                {"type": name, "soft": soft, "hard": hard} for name, (soft, hard) in rlimits.items()
            ],
            "noNewPrivileges": True,
        },
        "mounts": _mounts(spec, binds),
        "linux": {
            "namespaces": [{"type": name} for name in _NAMESPACES],
            "uidMappings": _mappings(spec.uid_mappings),
            "gidMappings": _mappings(spec.gid_mappings),
            "cgroupsPath": f"/{spec.cgroups_path}",
            "resources": _resources(spec.limits),
            "maskedPaths": masked,
            "readonlyPaths": [*spec.read_only_paths],
            "rootfsPropagation": "private",
            "seccomp": oci_seccomp(seccomp.load_profile(spec.seccomp_profile), machine),
        },
    }


def _mappings(mappings: Iterable[IdMapping]) -> list[dict[str, int]]:
    return [{"containerID": m.container_id, "hostID": m.host_id, "size": m.size} for m in mappings]


def _mounts(spec: Spec, binds: Sequence[str]) -> list[dict[str, Any]]:
    """The file systems of plan_mounts(); devices and links are the runtime's own to make."""
    mounts = [_file_system(op) for op in plan_mounts(spec) if isinstance(op, FileSystem)]
    ids = [f"uid={spec.process.uid}", f"gid={spec.process.gid}"]
    mounts.append(
        {
            "destination": HAND_OVER_DIR,
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "nodev", "mode=0700", f"size={HAND_OVER_BYTES}", *ids],
        }
    )
    ordered = sorted(zip(spec.binds, binds, strict=True), key=lambda i: i[0].destination.count("/"))
    for bind, source in ordered:
        access = "ro" if bind.read_only else "rw"
        mounts.append(
            {
                "destination": bind.destination,
                "type": "bind",
                "source": source,
                "options": ["bind", access, "nosuid", "nodev", "private"],
            }
        )
    return mounts


def _file_system(operation: FileSystem) -> dict[str, Any]:
    options = [word for flag, word in ATTRIBUTE_WORDS.items() if operation.attributes & flag]
    options += [key if value is None else f"{key}={value}" for key, value in operation.options]
    return {
        "destination": operation.destination,
        "type": operation.fstype,
        "source": operation.fstype,
        "options": options,
    }


def _resources(limits: Limits) -> dict[str, Any]:
    """Without swap, whose accounting a host may lack: the cgroup has that limit already."""
    resources: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if limits.memory_bytes is not None:
        resources["memory"] = {"limit": limits.memory_bytes}
    cpu: dict[str, int] = {}
    if limits.cpu_quota_us is not None:
        cpu |= {"quota": limits.cpu_quota_us, "period": limits.cpu_period_us}
    if limits.cpu_weight is not None:
        cpu["shares"] = cpu_shares(limits.cpu_weight)
    if cpu:
        resources["cpu"] = cpu
    if limits.pids is not None:
        resources["pids"] = {"limit": limits.pids}
    throttles: dict[str, list[dict[str, int]]] = {}
    for name, key in (
        ("throttleReadBpsDevice", "read_bytes_per_s"),
        ("throttleWriteBpsDevice", "write_bytes_per_s"),
        ("throttleReadIOPSDevice", "read_ops_per_s"),
        ("throttleWriteIOPSDevice", "write_ops_per_s"),
    ):
        rates = [(disk, getattr(disk, key)) for disk in limits.io]
        found = [
            {"major": disk.major, "minor": disk.minor, "rate": rate}
            for disk, rate in rates
            if rate is not None
        ]
        if found:
            throttles[name] = found
    if throttles:
        resources["blockIO"] = throttles
    return resources


def oci_seccomp(profile: seccomp.Profile, machine: str) -> dict[str, Any]:
    """A filter that refuses no call that the profile allows, and as many others as OCI can say.

    OCI's rules have no order and no "all but these values", so the tests of some arguments (the
    mode of open, the request of ioctl) are wider here; pid 1 adds the profile itself. Where both
    filters refuse with an errno, Linux takes that of the one added last (seccomp(2)).
    """
    plain: dict[tuple[str, int], list[str]] = {}
    tested: list[dict[str, Any]] = []
    for call, rules in sorted(profile.calls.items()):
        if len(rules) == 1:
            plain.setdefault(_action(rules[0].action), []).append(call)
            continue
        found = _allowed(rules)
        if found is None:
            plain.setdefault(_action(_ALLOW), []).append(call)
            continue
        tested += [{"names": [call], "action": "SCMP_ACT_ALLOW", "args": args} for args in found]
    action, number = _action(profile.default)
    result: dict[str, Any] = {
        "defaultAction": action,
        "architectures": [_ARCHITECTURES[machine]],
        "syscalls": [_plain_rule(key, names) for key, names in plain.items()] + tested,
    }
    if number:
        result["defaultErrnoRet"] = number
    return result


def _plain_rule(key: tuple[str, int], names: list[str]) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names, "action": key[0]}
    if key[1]:
        rule["errnoRet"] = key[1]
    return rule


def _action(action: int) -> tuple[str, int]:
    if action == _ALLOW:
        return "SCMP_ACT_ALLOW", 0
    if action & ~_DEFAULT_ERRNO == _ERRNO:
        return "SCMP_ACT_ERRNO", action & _DEFAULT_ERRNO
    return "SCMP_ACT_KILL_PROCESS", 0


def _allowed(rules: Sequence[seccomp.Rule]) -> list[list[dict[str, int | str]]] | None:
    """Alternatives, each a list of tests of arguments; None when every argument must be let in."""
    found: list[list[dict[str, int | str]]] = []
    refused: list[seccomp.Rule] = []
    for rule in rules:
        if rule.action != _ALLOW:
            refused.append(rule)
        elif rule.when and not any(condition.any_bits for condition in rule.when):
            tests = [[_equal(c.arg, c.mask, value) for value in c.values] for c in rule.when]
            found += [list(choice) for choice in itertools.product(*tests)]
        elif rule.when or len(refused) != 1 or len(refused[0].when) != 1:
            return None
        elif bits := refused[0].when[0].any_bits:  # all but those with one of these bits
            found.append([_equal(refused[0].when[0].arg, bits, 0)])
        else:
            return None
    return found


def _equal(arg: int, mask: int, value: int) -> dict[str, int | str]:
    """`argument & mask == value`, as libseccomp writes it: the mask first."""
    return {"index": arg, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
