"""The journal: what each sandbox holds, written before it is acquired, and what it is. Effectful.

A daemon may be killed at any moment. The next one finds a record of everything: what runs it
takes over, everything else it gives back (recovery.py). The mounts of a sandbox need no entry: they
live in namespaces that end with the processes (rootfs.py).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from sandboxkernel.daemon.plan import Ground
from sandboxkernel.models import ExitInfo, KernelCreate
from sandboxruntime.spec import Spec

__all__ = ["KernelRecord", "Lease", "LeaseJournal", "Record", "Started", "boot_id"]

log = logging.getLogger(__name__)


class Lease(Struct, kw_only=True, frozen=True):
    """What one sandbox, zygote or spare holds on the host.

    `scratch` is a layer that is deleted with it; `sockets` is empty where there are none.
    """

    id: str
    kind: Literal["kernel", "zygote", "spare"] = "kernel"
    cgroup: str
    sockets: str = ""
    scratch: str | None = None


class Started(Struct, kw_only=True, frozen=True):
    """A start that has been handed over: by what its processes are found again.

    `pid` is the program's and `ticks` when that was started (proc_pid_stat(5), starttime): together
    they are never another process. `filters` is how many seccomp filters it had.
    """

    spec: Spec
    init_pid: int
    pid: int
    ticks: int
    filters: int


class KernelRecord(Struct, kw_only=True, frozen=True):
    """What a sandbox is, beside what runs in it now."""

    request: KernelCreate
    ground: Ground
    image: str
    image_digest: str
    spares: bool
    generation: int
    created_at: datetime
    started_at: datetime | None = None
    exit: ExitInfo | None = None
    start_path: Literal["cold", "warm", "spare"] = "cold"
    cold_reason: str = ""
    timings: dict[str, float] = {}
    zygote: str | None = None
    spare: str | None = None


class Record(Struct, kw_only=True, frozen=True):
    """One file. `boot` is which start of the host it is from: nothing survives that.

    Without `kernel` a first start was on its way, of which nobody has been told; without `started`
    nothing runs that could be taken over.
    """

    boot: str
    lease: Lease
    kernel: KernelRecord | None = None
    started: Started | None = None


def boot_id() -> str:
    """Differs after every boot (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class LeaseJournal:
    """One file per lease under `directory`. It holds keys: it is root's alone."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._boot = boot_id()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(
        self, lease: Lease, kernel: KernelRecord | None = None, started: Started | None = None
    ) -> None:
        """Record a lease before anything that it names is acquired, and again as it changes."""
        record = Record(boot=self._boot, lease=lease, kernel=kernel, started=started)
        temporary = self._directory / f".{lease.id}.new"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb", buffering=0) as stream:
            stream.write(msgspec.json.encode(record))
        temporary.replace(self._directory / lease.id)

    def forget(self, lease_id: str) -> None:
        """Drop the record of a lease that has been given back. Idempotent."""
        (self._directory / lease_id).unlink(missing_ok=True)

    def records(self) -> Iterator[Record]:
        """What former daemons left. A file that cannot be read is kept, and the log names it."""
        for name in sorted(os.listdir(self._directory)):
            path = self._directory / name
            if name.startswith("."):  # a daemon was killed before it was renamed
                path.unlink()
                continue
            try:
                yield msgspec.json.decode(path.read_bytes(), type=Record)
            except (OSError, msgspec.MsgspecError) as exc:
                log.error("cannot read %s, what it names is left alone: %s", path, exc)
