"""Taking over a container that another launcher made and left behind by its death.

What is known of it: its spec and the pid of its pid 1, both from the daemon's journal. What was
lost with the launcher is found again at pid 1, which keeps it (init.py): the read ends of its exit
pipe and of the log, and the root file system, of which a container has a mount of its own. Pid 1
may be one of a hostile image's, so what it shows is checked before it is used.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict

from sandboxruntime.cgroup import Cgroup
from sandboxruntime.channel import close_fds
from sandboxruntime.container import Container, Host
from sandboxruntime.errors import StateError
from sandboxruntime.identity import check_identity
from sandboxruntime.processes import open_process
from sandboxruntime.spec import Spec

__all__ = ["adopt"]

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY


def adopt(host: Host, spec: Spec, pid: int) -> tuple[Container, int]:
    """The container as create() returns it, and the read end of its log, which the caller owns.

    Raises StateError when pid 1 has ended, or is not what the spec says.
    """
    try:
        pidfd = open_process(pid)
    except ProcessLookupError as exc:
        raise StateError(
            f"pid 1 of container {spec.container_id} has ended",
            container_id=spec.container_id, status="missing",
        ) from exc  # fmt: skip
    taken = [pidfd]
    try:
        cgroup = Cgroup.attach(host.layout, spec.cgroups_path)
        check_identity(pid, pidfd, spec, cgroup)
        cgroup.guard_devices()  # an earlier version of this program may have had none
        exit_fd, log_fd = _kept_ends(pid, spec)
        taken += [exit_fd, log_fd]
        if not spec.zygote:
            host.mounts.adopt_rootfs(spec, pidfd)
        oom_fd = cgroup.oom_notify_fd()
    except (FileNotFoundError, ProcessLookupError) as exc:
        close_fds(taken)
        raise StateError(
            f"container {spec.container_id} ended while it was taken over: {exc}",
            container_id=spec.container_id, status="missing",
        ) from exc  # fmt: skip
    except BaseException:
        close_fds(taken)
        raise
    return Container(spec, pid, pidfd, exit_fd, oom_fd, cgroup), log_fd


def _kept_ends(pid: int, spec: Spec) -> tuple[int, int]:
    """Our own read ends of the exit pipe, which pid 1 has both ends of, and of the log."""
    ends: dict[str, dict[int, int]] = defaultdict(dict)  # pipe -> access mode -> descriptor
    for name in os.listdir(f"/proc/{pid}/fd"):
        target = os.readlink(f"/proc/{pid}/fd/{name}")
        if target.startswith("pipe:["):
            info = dict(
                line.split(":", 1)
                for line in _read(f"/proc/{pid}/fdinfo/{name}").split("\n")
                if ":" in line
            )
            ends[target][int(info["flags"], 8) & os.O_ACCMODE] = int(name)
    both = [modes[os.O_RDONLY] for modes in ends.values() if len(modes) == 2]
    single = [modes[os.O_RDONLY] for modes in ends.values() if list(modes) == [os.O_RDONLY]]
    if len(both) != 1 or len(single) != 1:
        raise StateError(
            f"pid 1 of container {spec.container_id} keeps {len(ends)} pipes, not exit and log",
            container_id=spec.container_id, status="foreign",
        )  # fmt: skip
    exit_fd = _open_pipe(pid, both[0])
    try:
        return exit_fd, _open_pipe(pid, single[0])
    except BaseException:
        os.close(exit_fd)
        raise


def _open_pipe(pid: int, number: int) -> int:
    """Open another process's pipe for reading (proc_pid_fd(5)); a descriptor may have changed."""
    fd = os.open(f"/proc/{pid}/fd/{number}", _READ)
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileNotFoundError(f"descriptor {number} of pid {pid} is no pipe")
    return fd


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as stream:
        return stream.read()
