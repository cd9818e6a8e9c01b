"""Ways to start a kernel through jupyter_client: ours on each path, and the plain one."""

from __future__ import annotations

import os
import time
import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyter_client.manager import KernelManager
from traitlets.config import Config

from sandboxkernel.client import SandboxClient
from sandboxkernel.models import Kernel

__all__ = ["LocalPeer", "ManagedPeer", "Peer", "SandboxPeer", "TcpPeer", "Traces", "precompile"]

CGROUPS = Path("/sys/fs/cgroup")
PREPARE_S = 60.0
# How long the number of spares must be the same to be taken for all that are wanted. The daemon
# makes them one by one, each after a quarter of a second without a start.
STABLE_S = 0.8


@dataclass(frozen=True, slots=True)
class Traces:
    """What a kernel has on the host and what must go with it: pids and paths."""

    pids: tuple[int, ...]
    paths: tuple[Path, ...]

    def left(self) -> list[str]:
        """What is still there. A process that waits for its parent to reap it is gone."""
        return [f"pid {pid}" for pid in self.pids if _runs(pid)] + [
            str(path) for path in self.paths if path.exists()
        ]


def _runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def pss_mib(pid: int) -> float:
    """Proportional set size of a process in MiB, from smaps_rollup (proc_pid_smaps(5))."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.split("Pss:")[1].split()[0]) / 1024


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split("PPid:")[1].split()[0])


class Peer(ABC):
    """One way to start a kernel; one kernel at a time."""

    name: str

    def prepare(self) -> None:  # noqa: B027  # most have nothing to wait for
        """Wait until it is as it should be before a start; not timed."""

    def check(self) -> None:  # noqa: B027
        """Raises RuntimeError if the start was not of the kind that is measured."""

    @abstractmethod
    def start(self) -> dict[str, Any]:
        """Start and return the connection info as soon as clients may connect."""

    @abstractmethod
    def stop(self) -> None:
        """End it and remove what it left. Also after a start that has failed."""


class ManagedPeer(Peer):
    """Through jupyter_client's KernelManager, as every front end does."""

    kernel_name: str

    def __init__(self, work: Path) -> None:
        self._work = work
        self._manager: KernelManager | None = None

    @property
    def manager(self) -> KernelManager:
        """The manager of the last start. Raises AssertionError before the first."""
        assert self._manager is not None
        return self._manager

    @abstractmethod
    def _make(self) -> KernelManager: ...

    def start(self) -> dict[str, Any]:
        self._manager = self._make()
        self._manager.start_kernel(cwd=str(self._work))
        return dict(self._manager.get_connection_info())

    def restart(self) -> dict[str, Any]:
        """The same kernel with a new process; the connection info, as start() returns it."""
        self.manager.restart_kernel(now=True)
        return dict(self.manager.get_connection_info())

    def stop(self) -> None:
        if self._manager is not None:
            self._manager.shutdown_kernel(now=True)

    @abstractmethod
    def pids(self) -> tuple[int, ...]:
        """The kernel's process, and what stands around it for its own sake."""

    def memory_mib(self) -> float:
        """Proportional set size of `pids()` together."""
        return sum(map(pss_mib, self.pids()))

    def traces(self) -> Traces:
        """What must be gone after stop()."""
        pids = self.pids()
        return Traces(pids, (*_cgroups(pids[0]), *self._paths()))

    @abstractmethod
    def _paths(self) -> tuple[Path, ...]: ...


def _cgroups(pid: int) -> tuple[Path, ...]:
    """The directories of a process's own groups in every hierarchy (cgroups(7))."""
    own = Path("/proc/self/cgroup").read_text().splitlines()
    found = set()
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if line not in own and path != "/":
            name = controllers.removeprefix("name=") or "unified"
            found |= {CGROUPS / folder / path[1:] for folder in (name, ".")}
    return tuple(sorted(path for path in found if path.is_dir()))


class SandboxPeer(ManagedPeer):
    """Ours, on one of its paths: a spare, a fork on demand (warm), or cold.

    `path` is what the daemon calls it; `profile` is the profile that makes it so.
    """

    kernel_name = "sandboxed-python"

    def __init__(
        self, work: Path, client: SandboxClient, path: str, *, profile: str, run_dir: Path
    ) -> None:
        super().__init__(work)
        self.name = path
        self._client, self._path = client, path
        self._profile, self._run_dir = profile, run_dir

    def _make(self) -> KernelManager:
        config = Config()
        config.SandboxProvisioner.profile = self._profile
        return KernelManager(kernel_name=self.kernel_name, config=config)

    def call_for_zygote(self) -> None:
        """The first kernel of a profile is a cold one and has its zygote made."""
        try:
            self.start()
        finally:
            self.stop()

    def prepare(self) -> None:
        """Until the zygote, and for a spare as many as are wanted, are there."""
        if self._path == "cold":
            return
        deadline, before, since = time.monotonic() + PREPARE_S, -1, time.monotonic()
        while time.monotonic() < deadline:
            answer = self._client.zygotes()
            # One that is being made is listed, too, and serves nobody yet.
            made = self._profile not in answer.starting
            found = [z for z in answer.zygotes if made and z.domain == self._profile]
            waiting = len(found[0].spares) if found else -1
            if found and self._path == "warm":
                return
            if waiting != before:
                before, since = waiting, time.monotonic()
            elif waiting > 0 and time.monotonic() - since > STABLE_S:
                return
            time.sleep(0.1)
        raise RuntimeError(f"no zygote of {self._profile}, or none of its spares, is ready")

    def check(self) -> None:
        """The path is the one that was meant."""
        kernel = self.kernel()
        if kernel.start_path != self._path:
            raise RuntimeError(f"started {kernel.start_path}: {kernel.cold_reason}")

    def kernel(self) -> Kernel:
        """What the daemon says of it."""
        return self._client.inspect(str(self.manager.kernel_id))

    def pids(self) -> tuple[int, ...]:
        """The kernel's process and pid 1 of its namespace."""
        pid = self.kernel().pid
        if pid is None:
            raise RuntimeError("it has ended")
        return pid, _parent(pid)

    def _paths(self) -> tuple[Path, ...]:
        kernel = self.kernel()
        assert kernel.connection is not None
        return Path(kernel.connection.ip).parent, self._run_dir / "leases" / kernel.id


class LocalPeer(ManagedPeer):
    """The plain, unsandboxed ipykernel, over sockets of the kind that ours has."""

    name = "plain"
    kernel_name = "python3"

    def _make(self) -> KernelManager:
        manager = KernelManager(kernel_name=self.kernel_name, transport="ipc")
        manager.ip = f"/run/sk-bench-{uuid.uuid4().hex[:8]}"
        return manager

    def pids(self) -> tuple[int, ...]:
        provisioner: Any = self.manager.provisioner
        return (provisioner.pid,)

    def _paths(self) -> tuple[Path, ...]:
        return tuple(Path(f"{self.manager.ip}-{port}") for port in range(1, 6))


class TcpPeer(LocalPeer):
    """The plain kernel as jupyter_client starts it when nothing is configured: over TCP."""

    name = "tcp"

    def _make(self) -> KernelManager:
        return KernelManager(kernel_name=self.kernel_name)

    def _paths(self) -> tuple[Path, ...]:
        return ()


def precompile() -> None:
    """Bytecode for the plain kernel's interpreter and packages: every other peer has it."""
    import compileall
    import sysconfig

    for name in ("stdlib", "purelib"):
        compileall.compile_dir(sysconfig.get_path(name), quiet=2, workers=os.cpu_count() or 1)
