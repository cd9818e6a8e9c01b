"""Trials of what this host's cgroups can do, for host.py. Effects, undone before returning.

Every function returns a short detail if the feature works and raises OSError or ContainerError
if it does not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import signal
from collections.abc import Iterator

from sandboxruntime import syscalls
from sandboxruntime.cgroup import devices as device_list
from sandboxruntime.cgroup.group import Cgroup
from sandboxruntime.cgroup.layout import Layout
from sandboxruntime.cgroup.limits import Limits
from sandboxruntime.errors import HostError

__all__ = ["clone_into_cgroup", "devices", "freeze", "kill", "limits", "oom_events", "swap"]

_MEBIBYTE = 1 << 20


@contextlib.contextmanager
def _group(layout: Layout, wanted: Limits) -> Iterator[Cgroup]:
    # A parent of its own, so that nobody else's children are in the way of its removal.
    parent = Cgroup(layout, f"sandboxkernel-test-{secrets.token_hex(6)}")
    group = Cgroup.create(layout, f"{parent.path}/probe", wanted)
    try:
        yield group
    finally:
        group.kill()
        group.remove()
        parent.remove()


def limits(layout: Layout) -> str:
    """Write every kind of limit that needs no disk, and read it back."""
    with _group(layout, Limits(cpu_quota_us=50_000, cpu_weight=100, pids=16)) as group:
        return f"{len(group.directories)} hierarchies"


def devices(layout: Layout) -> str:
    """Attach the device allow-list to a v2 cgroup."""
    if "devices" in layout.v1:
        return f"v1, at {layout.v1['devices']}"
    with _group(layout, Limits()) as group:
        directory = group.directories.get("")
        if directory is None:
            raise FileNotFoundError(errno.ENOENT, "no such controller")
        device_list.attach(directory)
        return f"a BPF program, at {layout.v2}"


def swap(layout: Layout) -> str:
    """Write a memory and a swap limit."""
    with _group(layout, Limits(memory_bytes=64 * _MEBIBYTE)):
        return "memory plus swap is limited"


def oom_events(layout: Layout) -> str:
    """Arm the out-of-memory notification."""
    with _group(layout, Limits()) as group:
        group.oom_notify_fd()
    return "a notification can be armed"


@contextlib.contextmanager
def _sleeper(group: Cgroup) -> Iterator[int]:
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    try:
        group.enter(pid)
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)  # our child, not reaped: the number is its own
        os.waitpid(pid, 0)


def freeze(layout: Layout) -> str:
    """Freeze and thaw a process."""
    with _group(layout, Limits()) as group, _sleeper(group):
        group.freeze()
        if not group.is_frozen():
            raise OSError(errno.EOPNOTSUPP, "the cgroup did not freeze")
        group.thaw()
    return "through v2" if layout.v2 is not None else "through the v1 freezer"


def kill(layout: Layout) -> str:
    """Check for cgroup.kill by using it."""
    if layout.v2 is None:
        raise HostError("no cgroup v2 hierarchy is mounted", feature="cgroup_kill")
    with _group(layout, Limits()) as group, _sleeper(group) as pid:
        fd = os.open(f"{group.directories['']}/cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"1")
        finally:
            os.close(fd)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return "works"


def clone_into_cgroup(layout: Layout) -> str:
    """Start a process that is inside a cgroup from its first instruction."""
    if layout.v2 is None:
        raise HostError("no cgroup v2 hierarchy is mounted", feature="clone_into_cgroup")
    with _group(layout, Limits()) as group:
        directory_fd = os.open(group.directories[""], os.O_PATH | os.O_CLOEXEC)
        try:
            pid, child_fd = syscalls.clone3(syscalls.CloneFlag(0), cgroup_fd=directory_fd)
            if pid == 0:
                signal.pause()
                os._exit(0)
        finally:
            os.close(directory_fd)
        try:
            inside = pid in group.pids()
        finally:
            os.kill(pid, signal.SIGKILL)  # our child, not reaped: the number is its own
            os.waitpid(pid, 0)
            os.close(child_fd)
    if not inside:
        raise OSError(errno.EOPNOTSUPP, "the process started elsewhere")
    return "works"
