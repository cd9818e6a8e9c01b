"""Whether a process is the pid 1 of a container that a spec describes. Reads /proc only."""

from __future__ import annotations

import signal

from sandboxruntime.cgroup import Cgroup
from sandboxruntime.errors import StateError
from sandboxruntime.spec import Spec

__all__ = ["check_identity"]


def check_identity(pid: int, pidfd: int, spec: Spec, cgroup: Cgroup) -> None:
    """Whether this is pid 1 of that container: it is in its cgroup, which no other process is.

    Raises StateError when it is not, ProcessLookupError or FileNotFoundError when it has ended.
    """
    problems = cgroup.check_membership(_read(f"/proc/{pid}/cgroup"))
    namespaced = next(
        line.split()[1:]
        for line in _read(f"/proc/{pid}/status").split("\n")
        if line.startswith("NSpid:")
    )
    signal.pidfd_send_signal(pidfd, 0)  # so what was read was read of this process
    if namespaced[-1] != "1" or len(namespaced) < 2:
        problems.append(f"it has pids {namespaced}, and none is 1")
    if problems:
        raise StateError(
            f"pid {pid} is not pid 1 of container {spec.container_id}: {problems}",
            container_id=spec.container_id, status="foreign",
        )  # fmt: skip


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as stream:
        return stream.read()
