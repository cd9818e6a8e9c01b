"""Targets of the runtime: bundles, filters, specs, and what processes inside a sandbox say."""

from __future__ import annotations

import json
import os
import posixpath
import socket
from typing import Any

from sandboxruntime.bundles.config import parse_config
from sandboxruntime.bundles.filters import compile_oci_filter, parse_filter
from sandboxruntime.bundles.mounts import parse_options
from sandboxruntime.cgroup.layout import check_path, parse_layout, parse_others
from sandboxruntime.channel import recv_message
from sandboxruntime.errors import ContainerError
from sandboxruntime.handover import read_result
from sandboxruntime.seccomp import parse_profile
from sandboxruntime.spec import Spec, from_json, to_json
from sandboxruntime.status import await_status
from sandboxruntime.syscall_numbers import NUMBERS
from sandboxruntime.validate import validate
from tests.unit.bpf_simulator import simulate

MACHINE = "x86_64"
U64 = (1 << 64) - 1
MAPPING = {"container_id": 0, "host_id": 65536, "size": 65536}
SPEC: dict[str, Any] = {
    "container_id": "a1", "hostname": "a1", "cgroups_path": "sandboxkernel/1/a1",
    "rootfs": {"lower": ["/l"], "upper": "/u", "work": "/w"},
    "process": {"uid": 1000, "gid": 1000},
    "uid_mappings": [MAPPING], "gid_mappings": [MAPPING],
    "limits": {"memory_bytes": 1 << 29, "pids": 100},
    "binds": [{"source": "/home/a", "destination": "/home/a",
               "opener": {"uid": 1, "gid": 1}, "masked": [".ssh"]}],
}  # fmt: skip
FILTER: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
    "architectures": ["SCMP_ARCH_X86_64"],
    "syscalls": [
        {"names": ["read", "ioctl"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": [
            {"index": 0, "value": 16, "op": "SCMP_CMP_EQ"},
            {"index": 2, "value": 255, "valueTwo": 3, "op": "SCMP_CMP_MASKED_EQ"}]},
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [
            {"index": 0, "value": 4294967296, "op": "SCMP_CMP_LT"}]},
    ],
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "ociVersion": "1.2.0", "root": {"path": "rootfs"}, "hostname": "a",
    "process": {"args": ["sh"], "cwd": "/", "env": ["A=b"], "user": {"uid": 1, "gid": 1},
                "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
                "capabilities": {"bounding": ["CAP_KILL"]}},
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
               {"destination": "/d", "type": "bind", "source": "/s", "options": ["rbind", "rro"]}],
    "hooks": {"poststop": [{"path": "/bin/true", "env": ["A=b"], "timeout": 5}]},
    "linux": {
        "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "uts"}, {"type": "network"}],
        "maskedPaths": ["/proc/kcore"], "sysctl": {"net.ipv4.ip_forward": "1"}, "seccomp": FILTER,
        "devices": [{"path": "/dev/null", "type": "c", "major": 1, "minor": 3}],
        "resources": {"memory": {"limit": 1 << 29, "swap": 1 << 30}, "pids": {"limit": 9},
                      "cpu": {"shares": 512, "quota": 50000}, "devices": [{"allow": False}],
                      "blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 9}]}},
    },
}  # fmt: skip
MOUNTINFO = (
    "22 1 0:21 / /sys/fs/cgroup/pids rw,nosuid - cgroup cgroup rw,pids\n"
    "23 1 0:22 / /sys/fs/cgroup/uni\\040fied rw - cgroup2 none rw\n"
)


def read_json(data: bytes) -> Any:
    """What the command line reads of a file; None for what is no JSON."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def is_plain(path: str) -> bool:
    """Absolute, normalised, and with one slash at its beginning."""
    return path.startswith("/") and path[1:2] != "/" and posixpath.normpath(path) == path


def bundle_config(data: bytes) -> None:
    """A config.json: a value whose paths are plain and whose limits make sense, or a refusal."""
    try:
        config = parse_config(read_json(data))
    except ContainerError:
        return
    for path in (*config.masked_paths, *config.read_only_paths, config.process.cwd):
        assert is_plain(path), path
    assert all(is_plain(mount.destination) for mount in config.mounts)
    assert config.limits.cpu_weight is None or 1 <= config.limits.cpu_weight <= 10_000
    assert "mount" in config.namespaces
    for mount in config.mounts:
        try:
            options = parse_options(mount)
        except ContainerError:
            continue
        assert not options.set & options.clear, mount


def seccomp_filter(data: bytes) -> None:
    """A filter that compiles gives, for any call, what its rules say."""
    raw = read_json(data)
    if not isinstance(raw, dict):
        return
    try:
        program = compile_oci_filter(raw, MACHINE)
        default, calls = parse_filter(raw)
    except ContainerError:
        return
    for call in ("read", *list(calls)[:4]):
        if call not in NUMBERS[MACHINE]:
            continue
        rules = sorted(calls.get(call, ()), key=lambda rule: not rule.tests)
        values = [0, U64, *(t.value for r in rules for t in r.tests)]
        for value in values[:6]:
            for argument in {value, value + 1 & U64, value - 1 & U64, value ^ 1 << 40}:
                expected = next(
                    (r.action for r in rules if all(_holds(t, argument) for t in r.tests)), default
                )
                found = simulate(program, NUMBERS[MACHINE][call], [argument] * 6).value
                assert found == expected, (call, argument)


def _holds(test: Any, argument: int) -> bool:
    found = argument & test.mask
    answers = {"EQ": found == test.value, "MASKED_EQ": found == test.value,
               "NE": found != test.value, "LT": found < test.value, "LE": found <= test.value,
               "GT": found > test.value, "GE": found >= test.value}  # fmt: skip
    return answers[test.operator]


def own_profile(data: bytes) -> None:
    """A profile of our own, in TOML."""
    try:
        parse_profile(data.decode("utf-8", "replace"))
    except ContainerError:
        return


def spec(data: bytes) -> None:
    """A spec is refused, or comes back as it was; one that is valid mounts over nothing of ours."""
    try:
        found = from_json(Spec, read_json(data))
    except ContainerError:
        return
    assert from_json(Spec, json.loads(json.dumps(to_json(found)))) == found
    try:
        validate(found)
    except ContainerError:
        return
    for bind in found.binds:
        top = bind.destination.lstrip("/").split("/")[0]
        assert top not in ("", "proc", "sys", "dev", "run", "etc", "bin", "sbin", "lib"), bind
        assert top != "usr" or (bind.read_only and "-packages" in bind.destination), bind
    for path in (found.rootfs.upper, found.rootfs.work, *found.writable, *found.masked_paths):
        assert is_plain(path), path
    assert found.process.uid != 0


def launcher_message(data: bytes) -> None:
    """Bytes and descriptors on a socket: an object, or ValueError, and no descriptor is left."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        before = len(os.listdir("/proc/self/fd"))
        socket.send_fds(ours, [data or b" "], [theirs.fileno()] * (len(data) % 40))
        try:
            message, fds = recv_message(theirs)
        except ValueError:
            fds = []
        else:
            assert isinstance(message, dict)
        for fd in fds:
            os.close(fd)
        assert len(os.listdir("/proc/self/fd")) == before


def setup_status(data: bytes) -> None:
    """What a process says of its own set-up: timings, or the error of a step."""
    reading, writing = os.pipe()
    try:
        os.write(writing, data[:60000])
        os.close(writing)
        timings = await_status(reading, 5.0)
    except ContainerError:
        return
    finally:
        os.close(reading)
    assert all(isinstance(ms, float) for ms in timings.values())


def handover_result(data: bytes) -> None:
    """What a process says while it takes over: a result, or ValueError."""
    try:
        result = read_result(data)
    except ValueError:
        return
    assert isinstance(result.executed, str)


def mountinfo(data: bytes) -> None:
    """Lines of /proc/PID/mountinfo: a layout whose hierarchies are those that are mounted."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        layout = parse_layout(text, "cpu memory")
    except ContainerError:
        return
    points = set(layout.hierarchies().values())
    assert not points.intersection(parse_others(text, layout))


def cgroup_path(data: bytes) -> None:
    """A path that is accepted stays below its hierarchy."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        check_path(text)
    except ContainerError:
        return
    assert posixpath.normpath(f"/c/{text}") == f"/c/{text}"


def as_json(value: Any) -> bytes:
    """A seed."""
    return json.dumps(value).encode()


TARGETS = {
    bundle_config: [as_json(CONFIG)],
    seccomp_filter: [as_json(FILTER)],
    own_profile: [b'name="x"\ndefault="ENOSYS"\nallow=["read"]\n'
                  b'[[rule]]\ncalls=["socket"]\nwhen=[{arg=0,in=[1,2]}]\nthen="allow"\n'
                  b'[[rule]]\ncalls=["socket"]\nthen="EPERM"\n'],
    spec: [as_json(SPEC)],
    launcher_message: [as_json({"op": "create", "serial": 1, "spec": {}})],
    setup_status: [b'{"timings": {"mounts": 1.5}}\n',
                   b'{"step": "mounts", "errno": 1, "message": "x"}\n'],
    handover_result: [b'{"errno": 2, "message": "x"}\n', b'{"executes": "python"}\n'],
    mountinfo: [MOUNTINFO.encode()],
    cgroup_path: [b"sandboxkernel/1000/0123456789ab"],
}  # fmt: skip
