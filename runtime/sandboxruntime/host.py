"""What this host can do, found by trying it. Effects, all in forked children or undone.

Nothing here concludes from a version number where a probe is possible: distributions backport,
and containers, sysctls and boot parameters take away. Run as `python -m sandboxruntime.host`.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sandboxruntime import host_probes as probes
from sandboxruntime import landlock, seccomp
from sandboxruntime.cgroup import Layout, Mode, read_layout
from sandboxruntime.cgroup import probes as cgroup_probes
from sandboxruntime.errors import ContainerError
from sandboxruntime.oci import find_program

__all__ = ["Feature", "main", "probe"]

_NEWER: Final = "install a newer Linux"
_ROOT: Final = "run as root"
_MIN_DESCRIPTORS: Final = 65_536  # the daemon holds about ten per kernel


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing the host has or lacks.

    `promise` is what stands or falls with it; `fix` is the command or setting that brings it.
    """

    name: str
    present: bool
    detail: str
    promise: str
    fix: str


@dataclass(frozen=True, slots=True)
class _Probe:
    name: str
    try_it: Callable[[], str]  # returns the detail; raises OSError or ContainerError if absent
    promise: str
    fix: str


def probe(directory: str = tempfile.gettempdir()) -> list[Feature]:
    """Try everything. Takes about a tenth of a second; leaves nothing behind.

    Never raises for a missing feature: its `detail` says why it is missing.
    """
    return [_run(one) for one in (*_probes(directory), *_cgroup_probes())]


def _run(one: _Probe) -> Feature:
    try:
        detail, present = one.try_it(), True
    except OSError as exc:
        name = errno.errorcode.get(exc.errno or 0, "error")
        detail, present = f"{exc.strerror or exc} ({name})", False
    except ContainerError as exc:
        detail, present = str(exc), False
    # Without root most trials fail for that reason alone; any other advice would mislead.
    fix = (
        one.fix if os.geteuid() == 0 else f"{_ROOT} to find out; if it is still missing: {one.fix}"
    )
    return Feature(one.name, present, detail, one.promise, "" if present else fix)


def _version() -> str:
    return os.uname().release


def _root() -> str:
    if os.geteuid() != 0:
        raise PermissionError(errno.EPERM, f"running as uid {os.geteuid()}")
    return "uid 0"


def _seccomp() -> str:
    machine = os.uname().machine
    program = seccomp.compile_filter(seccomp.load_profile(), machine)
    probes.in_child(lambda: probes.install_filter(program))
    return f"notebook profile for {machine}: {len(program) // 8} instructions"


def _landlock() -> str:
    abi = landlock.abi_version()
    if abi == 0:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    probes.in_child(probes.restrict_itself)
    return f"ABI {abi}" + ("" if abi >= 6 else ": no scopes for signals and abstract sockets")


def _descriptors() -> str:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < _MIN_DESCRIPTORS:
        raise OSError(errno.EMFILE, f"hard limit {hard} is below {_MIN_DESCRIPTORS}")
    return f"hard limit {hard}"


def _runc() -> str:
    program = find_program("runc")
    done = subprocess.run(
        [program, "--version"], capture_output=True, text=True, timeout=10, check=False
    )
    if done.returncode:
        raise OSError(errno.ENOEXEC, f"{program} --version ended with {done.returncode}")
    return done.stdout.splitlines()[0]


def _state_idmap(directory: str) -> str:
    with tempfile.TemporaryDirectory(prefix="sandboxkernel-probe-", dir=directory) as trial:
        probes.in_child(lambda: probes.idmap_directory(trial))
    return f"the file system of {directory}"


def _probes(directory: str) -> tuple[_Probe, ...]:
    """Every trial but those of cgroups; layers would be in `directory`."""
    return (
        _Probe("linux", _version, "security fixes", _NEWER),
        _Probe("root", _root, "every limit and namespace below", _ROOT),
        _Probe(
            "user_namespace", lambda: probes.namespace("NEWUSER"),
            "root inside is nobody outside",
            "sysctl -w user.max_user_namespaces=65536",
        ),
        _Probe(
            "mount_namespace", lambda: probes.namespace("NEWNS"),
            "host files cannot be seen", "sysctl -w user.max_mnt_namespaces=65536",
        ),
        _Probe(
            "pid_namespace", lambda: probes.namespace("NEWPID"),
            "other processes cannot be seen or signalled",
            "sysctl -w user.max_pid_namespaces=65536",
        ),
        _Probe(
            "network_namespace", lambda: probes.namespace("NEWNET"),
            "no network but what the profile allows", "sysctl -w user.max_net_namespaces=65536",
        ),
        _Probe(
            "ipc_namespace", lambda: probes.namespace("NEWIPC"),
            "no shared memory between sandboxes", "sysctl -w user.max_ipc_namespaces=65536",
        ),
        _Probe(
            "uts_namespace", lambda: probes.namespace("NEWUTS"),
            "a host name of its own", "sysctl -w user.max_uts_namespaces=65536",
        ),
        _Probe(
            "cgroup_namespace", lambda: probes.namespace("NEWCGROUP"),
            "host cgroup paths cannot be seen", "sysctl -w user.max_cgroup_namespaces=65536",
        ),
        _Probe(
            "new_mount_api", lambda: probes.in_child(probes.detached_mount),
            "mounts without path races", f"{_NEWER} (5.2)",
        ),
        _Probe(
            "nosymfollow", lambda: probes.in_child(probes.nosymfollow_mount),
            "symlinks of a sandbox cannot lead the host astray", f"{_NEWER} (5.14)",
        ),
        _Probe(
            "overlay", lambda: probes.in_child(lambda: probes.overlay("lowerdir")),
            "shared images, private changes", "modprobe overlay",
        ),
        _Probe(
            "overlay_lowerdir_append", lambda: probes.in_child(lambda: probes.overlay("lowerdir+")),
            "layers without escaping and length limits", f"{_NEWER} (6.8)",
        ),
        _Probe(
            "overlay_layer_fds", lambda: probes.in_child(lambda: probes.overlay("fd")),
            "layers without path races", f"{_NEWER} (6.13)",
        ),
        _Probe(
            "idmapped_tmpfs", lambda: probes.in_child(probes.idmap_tmpfs),
            "work folders on tmpfs", f"{_NEWER} (6.3)",
        ),
        _Probe(
            "idmapped_state", lambda: _state_idmap(directory),
            "layers on disk shared between users' id ranges",
            "keep the state directory on ext4, xfs, btrfs or tmpfs",
        ),
        _Probe(
            "executor_runc", _runc,
            "profiles whose executor is runc", "apt-get install runc",
        ),
        _Probe(
            "no_new_privs", lambda: probes.in_child(probes.no_new_privs),
            "setuid programs gain nothing", _NEWER,
        ),
        _Probe(
            "seccomp", _seccomp,
            "dangerous system calls are refused",
            "build Linux with CONFIG_SECCOMP_FILTER=y",
        ),
        _Probe(
            "landlock", _landlock,
            "a second layer over file access, signals and abstract sockets",
            "add landlock to the lsm= boot parameter",
        ),
        _Probe(
            "pidfd", probes.pidfd,
            "signals reach the right process", f"{_NEWER} (5.4)",
        ),
        _Probe(
            "openat2", lambda: probes.in_child(probes.openat2),
            "paths of users cannot leave their folder", f"{_NEWER} (5.6)",
        ),
        _Probe(
            "close_range", lambda: probes.in_child(probes.close_range),
            "no descriptor of the host leaks in", f"{_NEWER} (5.9)",
        ),
        _Probe(
            "file_descriptors", _descriptors,
            "many kernels under one daemon", "set LimitNOFILE=1048576 in the service",
        ),
    )  # fmt: skip


def _cgroup_probes() -> list[_Probe]:
    promise = "limits hold and neighbours are unaffected"
    try:
        layout = read_layout()
    except (OSError, ContainerError) as exc:
        message = str(exc)

        def missing() -> str:
            raise FileNotFoundError(errno.ENOENT, message)

        return [_Probe("cgroup", missing, promise, "mount -t cgroup2 none /sys/fs/cgroup")]
    found = [_Probe("cgroup", lambda: f"{layout.mode} layout", promise, "")]
    for name, v1_name, what in (
        ("memory", "memory", "memory limit"),
        ("cpu", "cpu", "CPU limit"),
        ("pids", "pids", "process limit"),
        ("io", "blkio", "disk throughput limit"),
    ):
        found.append(_controller(layout, name, v1_name, what))
    if layout.mode is not Mode.V2:
        found.append(_controller(layout, "cpuacct", "cpuacct", "CPU use is counted"))
    return [*found, *_cgroup_feature_probes(layout)]


def _controller(layout: Layout, name: str, v1_name: str, promise: str) -> _Probe:
    def look() -> str:
        if v1_name in layout.v1:
            return f"v1, at {layout.v1[v1_name]}"
        if name in layout.v2_controllers:
            return f"v2, at {layout.v2}"
        raise FileNotFoundError(errno.ENOENT, "no such controller")

    fix = f"remove cgroup_disable={name} from the boot parameters, or mount the controller"
    return _Probe(f"cgroup_{name}", look, promise, fix)


def _cgroup_feature_probes(layout: Layout) -> list[_Probe]:
    return [
        _Probe(
            "cgroup_devices", lambda: cgroup_probes.devices(layout), "device allow-list",
            "mount the v1 devices controller, or use a Linux with CONFIG_CGROUP_BPF",
        ),
        _Probe(
            "cgroup_write", lambda: cgroup_probes.limits(layout),
            "limits are written and read back", _ROOT,
        ),
        _Probe(
            "swap_accounting", lambda: cgroup_probes.swap(layout),
            "the memory limit cannot be evaded through swap",
            "boot with the kernel parameter swapaccount=1",
        ),
        _Probe(
            "cgroup_freeze", lambda: cgroup_probes.freeze(layout),
            "kernels can be paused", "mount -t cgroup2 none /sys/fs/cgroup/unified",
        ),
        _Probe(
            "cgroup_kill", lambda: cgroup_probes.kill(layout),
            "everything dies at once, forks in flight included",
            f"{_NEWER} (5.14) with a cgroup2 mount; without it a slower loop is used",
        ),
        _Probe(
            "clone_into_cgroup", lambda: cgroup_probes.clone_into_cgroup(layout),
            "no instruction runs outside the cgroup",
            f"{_NEWER} (5.7) with a cgroup2 mount; without it a child enters by itself",
        ),
        _Probe(
            "oom_events", lambda: cgroup_probes.oom_events(layout),
            "the user is told that memory ran out", "mount the memory controller",
        ),
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Print the features; exit status 1 if any is missing."""
    parser = argparse.ArgumentParser(prog="python -m sandboxruntime.host", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    parser.add_argument("--state", default=tempfile.gettempdir(), help="where layers would be")
    options = parser.parse_args(arguments)
    features = probe(options.state)
    if options.json:
        text = json.dumps([dataclasses.asdict(feature) for feature in features], indent=2)
    else:
        text = "\n".join(_render(feature) for feature in features)
    sys.stdout.write(text + "\n")
    return 0 if all(feature.present for feature in features) else 1


def _render(feature: Feature) -> str:
    line = f"{'ok' if feature.present else 'MISSING':8}{feature.name:26}{feature.detail}"
    if feature.present:
        return line
    return f"{line}\n{'':8}without it: {feature.promise}\n{'':8}fix: {feature.fix}"


if __name__ == "__main__":
    sys.exit(main())
