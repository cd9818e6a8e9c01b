"""The journal: what each sandbox holds, written before it is acquired, and what it is. Effectful.

A daemon may be killed at any moment. The next one finds a record of everything: what runs it
takes over, everything else it gives back (recovery.py). The mounts of a sandbox need no entry: they
live in namespaces that end with the processes (rootfs.py).
"""

from __future__ import annotations

import contextlib
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

__all__ = ["KernelRecord", "Lease", "LeaseJournal", "Record", "Started", "boot_id", "replace_file"]

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


def replace_file(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Put a file in the place of another, whole or not at all. `durable`: also in a power cut.

    Raises OSError, of a full disk too: write(2) by itself writes what there is room for.
    """
    temporary = path.with_name(f".{path.name}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as stream:
            stream.write(data)
            if durable:
                stream.flush()
                os.fsync(fd)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


class LeaseJournal:
    """One file per lease under `directory`. It holds keys: it is root's alone."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._boot = boot_id()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(
        self, lease: Lease, kernel: KernelRecord | None = None, started: Started | None = None
    ) -> None:
        """Record a lease before anything that it names is acquired, and again as it changes.

        Raises OSError when there is no room for it, and keeps the record that was there.
        """
        record = Record(boot=self._boot, lease=lease, kernel=kernel, started=started)
        replace_file(self._directory / lease.id, msgspec.json.encode(record))

    def forget(self, lease_id: str) -> None:
        """Drop the record of a lease that has been given back. Idempotent."""
        (self._directory / lease_id).unlink(missing_ok=True)

    def ids(self) -> set[str]:
        """Ids of everything that holds, or is about to hold, something."""
        return {name for name in os.listdir(self._directory) if not name.startswith(".")}

    def records(self) -> Iterator[Record]:
        """What former daemons left. A file that cannot be read is kept, and the log names it."""
        for name in sorted(os.listdir(self._directory)):
            if name.startswith("."):  # a daemon was killed before it was renamed
                with contextlib.suppress(OSError):
                    (self._directory / name).unlink()
                continue
            try:
                yield self._read(name)
            except (OSError, ValueError, RecursionError) as exc:  # MsgspecError is a ValueError
                path = self._directory / name
                log.error("cannot read %s, what it names is left alone: %s", path, exc)

    def unreadable(self) -> dict[str, str]:
        """Why a file cannot be read, by its name."""
        found = {}
        for name in sorted(self.ids()):
            try:
                self._read(name)
            except FileNotFoundError:
                continue  # given back meanwhile
            except (OSError, ValueError, RecursionError) as exc:
                found[name] = str(exc)
        return found

    def _read(self, name: str) -> Record:
        record = msgspec.json.decode((self._directory / name).read_bytes(), type=Record)
        if record.lease.id != name:
            raise ValueError(f"it is of lease {record.lease.id!r}")
        return record
