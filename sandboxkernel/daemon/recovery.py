"""What a daemon does first: take over what former ones left running, give the rest back. asyncio.

There is no other way to start: a daemon that was stopped, killed or replaced by a newer one leaves
the same behind. What ran is known from the journal and from Linux alone.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sandboxkernel.daemon.lease import Lease, LeaseJournal, Record, boot_id
from sandboxkernel.daemon.removals import FAILURES, Removals
from sandboxkernel.daemon.runtime import Runtime
from sandboxkernel.daemon.sandbox import Sandbox
from sandboxkernel.daemon.service import Kernels
from sandboxkernel.daemon.spares import Spare
from sandboxkernel.daemon.zygotes import Claim
from sandboxkernel.errors import LauncherLost, SandboxError
from sandboxkernel.images.removal import remove_tree

__all__ = ["Fate", "Recovered", "fate_of", "forget_former_boots", "recover"]

log = logging.getLogger(__name__)

BOOT_FILE = ".boot"


class Fate(enum.Enum):
    """What becomes of a record."""

    ADOPT = "adopt"  # it runs: look after it
    BURY = "bury"  # its user knows it, and it has ended unseen
    REMEMBER = "remember"  # its user knows it, and how it has ended
    RELEASE = "release"  # nobody knows it: give everything back


@dataclass(slots=True)
class Recovered:
    """Ids of sandboxes by what became of them, and how long that took."""

    adopted: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    took_s: float = 0.0


def fate_of(record: Record, boot: str) -> Fate:
    """What should become of a kernel's record, or of a zygote's that kernels need. Pure."""
    if record.boot != boot:
        return Fate.RELEASE
    if record.lease.kind != "kernel":
        return Fate.ADOPT if record.started is not None else Fate.RELEASE
    if record.kernel is None:  # its first start was on its way
        return Fate.RELEASE
    if record.kernel.exit is not None:
        return Fate.REMEMBER
    return Fate.ADOPT if record.started is not None else Fate.BURY  # during a restart


def forget_former_boots(scratch_dir: Path, removals: Removals) -> None:
    """Delete the scratch layers from before the host was booted: nobody uses them any more."""
    marker, now = scratch_dir / BOOT_FILE, boot_id()
    if marker.exists() and marker.read_bytes() == now.encode():
        return
    for path in scratch_dir.iterdir():
        if path == marker:
            continue
        try:
            remove_tree(path)
        except OSError as exc:
            removals.failed(path.name, exc, functools.partial(asyncio.to_thread, remove_tree, path))
    # In its own place: a name or a block more is not to be had on a full disk.
    fd = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(fd, now.encode(), 0)
        os.ftruncate(fd, len(now))
    finally:
        os.close(fd)


async def recover(journal: LeaseJournal, kernels: Kernels, runtime: Runtime) -> Recovered:
    """Go through the journal. The launcher serves everybody when this returns."""
    began, found, boot = time.monotonic(), Recovered(), boot_id()
    records = list(journal.records())
    fates = {record.lease.id: fate_of(record, boot) for record in records}
    adopted: list[Record] = []
    ended: list[Sandbox] = []
    for record in (r for r in records if r.kernel is not None):
        fate = fates[record.lease.id]
        if fate is Fate.RELEASE:
            continue
        assert record.kernel is not None
        sandbox = kernels.restore(record.lease, record.kernel)
        if fate is Fate.ADOPT and await _take_over(sandbox, record):
            found.adopted.append(sandbox.id)
            adopted.append(record)
            continue
        found.ended.append(sandbox.id)
        ended.append(sandbox)
    kept = await _keep_needed(kernels, records, adopted, fates)
    runtime.launcher.open()
    for sandbox in ended:
        await _bury(sandbox, kernels)
    known = {*found.adopted, *found.ended, *kept}
    gone = [record.lease for record in records if record.lease.id not in known]
    for lease in gone:
        try:
            await _give_back(lease, journal, runtime)
        except FAILURES as exc:
            again = functools.partial(_give_back, lease, journal, runtime)
            kernels.removals.failed(lease.id, exc, again)
        else:
            found.released += [lease.id] if lease.kind == "kernel" else []
    found.took_s = time.monotonic() - began
    return found


async def _take_over(sandbox: Sandbox, record: Record) -> bool:
    kernel, started = record.kernel, record.started
    assert kernel is not None and started is not None
    claim = None
    if kernel.zygote is not None:
        spare = Spare(kernel.spare, started.spec.cgroups_path) if kernel.spare else None
        claim = Claim(kernel.zygote, spare)
    try:
        await sandbox.take_over(started, claim)
        return True
    except LauncherLost:
        raise  # which says nothing of the kernel: the next daemon tries again
    except SandboxError as exc:
        log.warning("kernel %s is not taken over: %s", kernel.request.kernel_id, exc)
        return False


async def _keep_needed(
    kernels: Kernels, records: Iterable[Record], adopted: list[Record], fates: dict[str, Fate]
) -> set[str]:
    """Zygotes and spares of kernels that live on: the former are parents, the latter cgroups."""
    of_kernels = [record.kernel for record in adopted if record.kernel is not None]
    children = Counter(kernel.zygote for kernel in of_kernels if kernel.zygote is not None)
    kept = {kernel.spare for kernel in of_kernels if kernel.spare is not None}
    for record in records:
        needed = record.lease.kind == "zygote" and record.lease.id in children
        if needed and record.started is not None and fates[record.lease.id] is Fate.ADOPT:
            try:
                live = children[record.lease.id]
                await kernels.zygotes.take_over(record.lease, record.started, live)
            except LauncherLost:
                raise
            except SandboxError as exc:
                log.warning("zygote %s is not taken over: %s", record.lease.id, exc)
                continue
            kept.add(record.lease.id)
    return kept


async def _bury(sandbox: Sandbox, kernels: Kernels) -> None:
    """Tell the end of a start that ended unseen, and see that nothing of it is left."""
    if sandbox.state != "exited":
        await sandbox.bury()
    sandbox.left_cgroup = sandbox.lease.cgroup
    try:
        await sandbox.delete_container()
    except FAILURES as exc:
        kernels.on_left(sandbox, exc)


async def _give_back(lease: Lease, journal: LeaseJournal, runtime: Runtime) -> None:
    await runtime.launcher.request_again("delete", container_id=lease.id, cgroups_path=lease.cgroup)
    for directory in (lease.sockets, lease.scratch):
        if directory:
            await asyncio.to_thread(remove_tree, Path(directory))
    journal.forget(lease.id)
