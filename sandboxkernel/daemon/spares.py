"""Spares: children of a zygote, forked ahead of any request, that wait for somebody to be. asyncio.

A spare is in a cgroup of its own with its profile's limits, holds nothing of any user, and takes
identity, layer, mounts, environment and sockets when it is claimed. How many wait follows recent
demand, what the profile has wait always, and free memory. They are made when nothing else is being
started.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from dataclasses import dataclass, field

from sandboxkernel.daemon.lease import Lease, LeaseJournal
from sandboxkernel.daemon.removals import FAILURES, Removals
from sandboxkernel.daemon.reserve import Reserve
from sandboxkernel.daemon.runtime import Runtime
from sandboxkernel.errors import SandboxError
from sandboxruntime.cgroup import Limits
from sandboxruntime.spec import to_json

__all__ = ["Spare", "SparePool"]

log = logging.getLogger(__name__)

QUIET_S = 0.25  # nothing has been started for so long: now is the time to make one
DEMAND_S = 60.0  # as many are kept ready as were claimed in this time, within bounds


@dataclass(frozen=True, slots=True)
class Spare:
    """A waiting child. `cgroup` is where it is and, once claimed, where its kernel will be."""

    id: str
    cgroup: str


@dataclass(slots=True)
class SparePool:
    """The spares of one zygote, all with the same limits. `least` wait also without demand."""

    zygote_id: str
    limits: Limits
    runtime: Runtime
    journal: LeaseJournal
    cgroup_parent: str
    least: int
    most: int
    reserve: Reserve
    removals: Removals
    _waiting: deque[Spare] = field(default_factory=deque)
    _claims: deque[float] = field(default_factory=deque)
    _busy_until: float = 0.0
    _task: asyncio.Task[None] | None = None
    _closed: bool = False

    def ids(self) -> list[str]:
        """Those that wait."""
        return [spare.id for spare in self._waiting]

    def claim(self) -> Spare | None:
        """One that waits; a kernel of that zygote is being started either way."""
        now = time.monotonic()
        self._claims.append(now)
        self._busy_until = now + QUIET_S
        self.refill()
        return self._waiting.popleft() if self._waiting else None

    def refill(self) -> None:
        """See to it that the wanted number waits, soon."""
        if self.most and not self._closed and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._fill())

    def lost(self, spare_id: str) -> None:
        """It has ended by itself: drop it, if it is one of these."""
        if spare_id in self.ids():
            self._waiting = deque(spare for spare in self._waiting if spare.id != spare_id)
            self.journal.forget(spare_id)

    def wanted(self) -> int:
        """How many should wait now."""
        if self.reserve.is_short():
            return 0
        while self._claims and time.monotonic() - self._claims[0] > DEMAND_S:
            self._claims.popleft()
        return min(self.most, max(1, self.least, len(self._claims)))

    async def close(self) -> None:
        """End those that wait. No more are made."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        while self._waiting:
            await self._end(self._waiting.popleft())

    async def _fill(self) -> None:
        while True:
            pause = self._busy_until - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
                continue
            surplus = len(self._waiting) - self.wanted()
            if surplus > 0:
                await self._end(self._waiting.pop())
            elif surplus == 0:
                return
            else:
                try:
                    await self._park()
                except (SandboxError, OSError) as exc:
                    log.warning("no spare from zygote %s: %s", self.zygote_id, exc)
                    return

    async def _park(self) -> None:
        spare_id = secrets.token_hex(6)
        spare = Spare(spare_id, f"{self.cgroup_parent}/spares/{spare_id}")
        self.journal.write(Lease(id=spare_id, kind="spare", cgroup=spare.cgroup))
        try:
            await self.runtime.launcher.request(
                "park", zygote=self.zygote_id, spare=spare_id, cgroups_path=spare.cgroup,
                limits=to_json(self.limits),
            )  # fmt: skip
        except BaseException:
            # Given up by us, or lost with the launcher: it may be there, in part or whole.
            await asyncio.shield(self._end(spare))
            raise
        if self._closed:
            await self._end(spare)
        else:
            self._waiting.append(spare)

    async def _end(self, spare: Spare) -> None:
        try:
            await self._delete(spare)
        except FAILURES as exc:
            self.removals.failed(spare.id, exc, lambda: self._delete(spare))

    async def _delete(self, spare: Spare) -> None:
        await self.runtime.launcher.request_again("unpark", spare=spare.id)
        await self.runtime.launcher.request_again(
            "delete", container_id=spare.id, cgroups_path=spare.cgroup
        )
        self.journal.forget(spare.id)
