"""The lease of a sandbox: a journal of what it holds, written before it is acquired. Effectful.

After a crash of the daemon, `sweep` releases everything that a journal names. The mounts of a
sandbox need no entry: they live in namespaces that end with the processes (rootfs.py).
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from sandboxruntime.errors import ContainerError

__all__ = ["Lease", "LeaseJournal"]

log = logging.getLogger(__name__)


class Lease(Struct, kw_only=True, frozen=True):
    """What one sandbox holds on the host. `scratch` is a layer that is deleted with it."""

    id: str
    kernel_id: str
    owner_uid: int
    cgroup: str
    sockets: str
    scratch: str | None = None


class LeaseJournal:
    """One file per sandbox under `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, lease: Lease) -> None:
        """Record a lease before anything it names is acquired."""
        temporary = self._directory / f".{lease.id}.new"
        temporary.write_bytes(msgspec.json.encode(lease))
        temporary.replace(self._path(lease.id))

    def forget(self, lease_id: str) -> None:
        """Drop the record of a lease that has been given back. Idempotent."""
        self._path(lease_id).unlink(missing_ok=True)

    def sweep(self, release_cgroup: Callable[[str], None]) -> list[str]:
        """Release every recorded lease; returns their ids. Goes on after a failure."""
        swept = []
        for name in sorted(os.listdir(self._directory)):
            path = self._directory / name
            try:
                lease = msgspec.json.decode(path.read_bytes(), type=Lease)
                release_cgroup(lease.cgroup)
                shutil.rmtree(lease.sockets, ignore_errors=True)
                if lease.scratch:
                    shutil.rmtree(lease.scratch, ignore_errors=True)
            except (OSError, msgspec.MsgspecError, ContainerError):
                log.exception("cannot release what %s names", path)
                continue
            path.unlink()
            swept.append(lease.id)
        return swept

    def _path(self, lease_id: str) -> Path:
        return self._directory / lease_id
