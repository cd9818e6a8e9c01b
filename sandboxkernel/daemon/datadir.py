"""The data directory is one daemon's at a time: nobody else's ids, nobody else's layers. Effectful.

Two daemons on one directory would give one range of host ids to two users, and mount one user layer
twice, which is undefined behaviour (Linux, overlayfs.rst).
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from sandboxkernel.daemon.lease import LeaseJournal, boot_id
from sandboxkernel.daemon.server import answers
from sandboxkernel.errors import SandboxError
from sandboxkernel.images.staging import FULL_DISK
from sandboxkernel.paths import Paths

__all__ = ["hold_data_dir"]

log = logging.getLogger(__name__)

LOCK_NAME = "daemon.lock"
WAIT_S = 10.0  # a daemon that stops has closed its socket, and still puts things away
RETRY_S = 0.05


class _Holder(Struct, frozen=True):
    """Who holds the directory, or held it last, and since which boot of the host."""

    pid: int
    run_dir: str
    boot: str

    @property
    def paths(self) -> Paths:
        """Its socket and its journal."""
        return Paths(run_dir=Path(self.run_dir), data_dir=Path())


@asynccontextmanager
async def hold_data_dir(paths: Paths) -> AsyncIterator[None]:
    """Make the data directory, root's alone, and be the only daemon that uses it.

    The lock is of this process (fcntl(2), F_SETLK): nothing that it starts inherits it, and it ends
    with it. Sandboxes live on without a daemon; their journal is in the run directory, so only a
    daemon of the same run directory may follow. Raises SandboxError when another daemon holds the
    directory for longer than a stop takes, or when another run directory's sandboxes may be alive.
    """
    paths.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    paths.data_dir.chmod(0o700)  # no user has business here, not even as a work folder
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(paths.data_dir / LOCK_NAME, flags, 0o600)
    try:
        await _lock(fd, paths.data_dir)
        _refuse_others_sandboxes(_read(fd), paths)
        _write(fd, _Holder(os.getpid(), str(paths.run_dir.resolve()), boot_id()))
        yield
    finally:
        os.close(fd)


async def _lock(fd: int, data_dir: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    waits = False
    while True:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, says fcntl(2)
            holder = _read(fd)
            who = f"the daemon of {holder.run_dir}, process {holder.pid}" if holder else "a daemon"
        if time.monotonic() > deadline or (holder and answers(holder.paths.api_socket)):
            raise SandboxError(
                f"{data_dir} is in use by {who}",
                hint="Stop that daemon, or set SANDBOXKERNEL_DATA_DIR to another directory.",
            )
        if not waits:
            log.warning("%s is in use by %s: waiting for it to stop", data_dir, who)
            waits = True
        await asyncio.sleep(RETRY_S)


def _refuse_others_sandboxes(former: _Holder | None, paths: Paths) -> None:
    run_dir = str(paths.run_dir.resolve())
    if former is None or former.run_dir == run_dir or former.boot != boot_id():
        return
    journal = former.paths.leases_dir
    held = len(LeaseJournal(journal).ids()) if journal.is_dir() else 0
    if held:
        raise SandboxError(
            f"{paths.data_dir} is in use by sandboxes of the daemon of {former.run_dir}"
            f" ({held} records in {journal})",
            hint=f"Start the daemon with SANDBOXKERNEL_RUN_DIR={former.run_dir} and end its kernels"
            " (Ctrl-C does), or set SANDBOXKERNEL_DATA_DIR to another directory.",
        )


def _read(fd: int) -> _Holder | None:
    """What the last holder wrote; None for nothing, or what a full disk cut short."""
    try:
        return msgspec.json.decode(os.pread(fd, 64 * 1024, 0), type=_Holder)
    except ValueError:  # MsgspecError is one
        return None


def _write(fd: int, holder: _Holder) -> None:
    data = msgspec.json.encode(holder)
    try:
        os.pwrite(fd, data, 0)  # over what is there, for which there is room on a full disk, too
        os.ftruncate(fd, len(data))
    except OSError as exc:
        if exc.errno not in FULL_DISK:
            raise
        log.warning("cannot write who holds the data directory: %s", exc.strerror)
