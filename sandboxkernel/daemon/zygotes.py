"""Zygotes: prepared processes of an image, from which kernels are forked. asyncio.

One for each image, trust domain and list of modules imported ahead. They are made in the
background after a first kernel has started cold; a kernel that cannot have one, or whose fork
fails, starts cold, too. None is ever needed for a start to succeed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from sandboxkernel.daemon.lease import Lease, LeaseJournal, Started
from sandboxkernel.daemon.plan import (
    plan_cgroup_limits,
)
from sandboxkernel.daemon.removals import FAILURES, Removals
from sandboxkernel.daemon.reserve import Reserve
from sandboxkernel.daemon.runtime import Runtime
from sandboxkernel.daemon.spares import Spare, SparePool
from sandboxkernel.daemon.zygote import Key, Zygote, ZygoteStart
from sandboxkernel.errors import LauncherLost, SandboxError
from sandboxkernel.images.removal import remove_tree
from sandboxkernel.images.store import StoredImage
from sandboxkernel.images.userlayers import UserLayers
from sandboxkernel.limits import Profile
from sandboxkernel.models import Zygote as ZygoteModel
from sandboxkernel.models import ZygoteList
from sandboxkernel.paths import Paths
from sandboxruntime.cgroup import Cgroup
from sandboxruntime.cgroup import Limits as CgroupLimits
from sandboxruntime.errors import ContainerError
from sandboxruntime.spec import to_json

__all__ = ["Claim", "Key", "Zygotes"]

log = logging.getLogger(__name__)

SETTLE_S = 0.5  # a zygote waits so long, so that the kernel that asked for it is not slowed down
RETRY_S = 60.0  # after a zygote that turned out unfit
FORKS_MAX = 2000  # then a fresh one: its children share hash seed and address layout
MEMORY_EVERY = 8  # forks, after which it is seen whether the zygote has grown
AGE_MAX_S = 6 * 3600.0
# Every child has a keyring of the zygote's uid, and kernel.keys.maxkeys is 200 (keyrings(7)).
LIVE_MAX = 150
WATCH_S = 5.0  # how often memory is looked at while there are zygotes
# Bytes on top of what it had when it was ready. A page that it writes after a fork stays charged to
# it for as long as that child has the former one: half a MiB a kernel that lives.
GROWTH_MAX = 128 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Claim:
    """Where a kernel may come from: a zygote, and of it a spare."""

    zygote_id: str
    spare: Spare | None = None


class Zygotes:
    """All zygotes of this daemon, by key."""

    def __init__(
        self,
        *,
        runtime: Runtime,
        layers: UserLayers,
        paths: Paths,
        journal: LeaseJournal,
        cgroup_parent: str,
        first_uid: int,
        guest_source: str,
        maximum: int,
        reserve: Reserve,
        removals: Removals,
    ) -> None:
        self._runtime = runtime
        self._removals = removals
        self._paths = paths
        self._journal = journal
        self._cgroup_parent = cgroup_parent
        self._uids = itertools.cycle(range(first_uid + 1, first_uid + 60000))
        self._starter = ZygoteStart(runtime, layers, journal, first_uid, guest_source)
        self._maximum = maximum
        self._reserve = reserve
        self._watching: asyncio.Task[None] | None = None
        self._current: dict[Key, Zygote] = {}
        self._all: dict[str, Zygote] = {}
        self._starting: dict[Key, asyncio.Task[None]] = {}
        self._not_before: dict[Key, float] = {}
        self._reasons: dict[Key, str] = {}

    def claim(self, key: Key | None, *, spares: bool) -> Claim | None:
        """The zygote to fork from, with a spare if wanted and there; None: start cold."""
        zygote = self._current.get(key) if key is not None else None
        if zygote is None:
            return None
        zygote.forks += 1
        zygote.live += 1
        # Most recently used last: the first is the one to give up when there are too many.
        self._current[zygote.key] = self._current.pop(zygote.key)
        return Claim(zygote.lease.id, zygote.spares.claim() if spares else None)

    def is_served(self, domain: str) -> bool:
        """Whether a trust domain has a zygote, or one is being made."""
        return any(key.domain == domain for key in (*self._current, *self._starting))

    def why_none(self, key: Key | None) -> str:
        """Why claim() returns None, for people who wonder why a start took long."""
        if key is None:
            return "the profile has zygotes off"
        if self._maximum < 1:
            return "max_zygotes is 0"
        return self._reasons.get(key) or (
            "memory of the host is short" if self._reserve.is_short() else "no zygote is ready yet"
        )

    def give_back(self, claim: Claim) -> None:
        """The kernel of a claim has ended, and its container is deleted."""
        if claim.zygote_id in self._all:
            self._all[claim.zygote_id].live -= 1
        if claim.spare is not None:
            self._journal.forget(claim.spare.id)

    def want(self, key: Key | None, image: StoredImage, profile: Profile) -> None:
        """See to it that later kernels of this key find a zygote, and not too old a one."""
        if key is None or self._maximum < 1 or key in self._starting:
            return
        for zygote in self._current.values():
            if zygote.key.domain == key.domain:  # of another image, nobody new comes to it
                zygote.spares.least = profile.min_spares if zygote.key == key else 0
        current = self._current.get(key)
        worn = current is not None and (
            current.forks >= FORKS_MAX
            or current.live + len(current.spares.ids()) >= LIVE_MAX
            or (current.forks % MEMORY_EVERY == 0 and self._has_grown(current))
            or time.monotonic() - current.born > AGE_MAX_S
        )
        if (current is not None and not worn) or time.monotonic() < self._not_before.get(key, 0):
            return
        if self._reserve.is_short():
            return
        task = asyncio.create_task(self._start(key, image, profile))
        self._starting[key] = task
        task.add_done_callback(lambda _: self._starting.pop(key, None))

    def blame(self, container_id: str, reason: object) -> None:
        """A fork failed: replace that zygote."""
        zygote = self._all.get(container_id)
        if zygote is not None and not zygote.retired:
            log.warning("zygote %s is replaced: %s", container_id, reason)
            self._spawn(self._retire(zygote))

    def on_exit(self, event: Mapping[str, Any]) -> None:
        """The launcher saw a spare end, or the pid 1 of a container that is no kernel's."""
        if event.get("event") == "spare_exit":
            for each in self._all.values():
                each.spares.lost(str(event["spare"]))
            return
        zygote = self._all.get(str(event.get("container_id")))
        if zygote is not None and event.get("event") == "zygote_exit":
            self.blame(zygote.lease.id, "it has ended")
            return
        if zygote is not None:
            zygote.log.drain()
            if not zygote.retired:
                output = zygote.log.tail(2000).decode(errors="replace").strip()
                log.warning("zygote %s has ended: %s", zygote.lease.id, output or "no output")
            self._spawn(self._release(zygote))

    def describe(self) -> ZygoteList:
        """What there is, for administrators."""
        now = time.monotonic()
        zygotes = [
            ZygoteModel(
                id=zygote.lease.id,
                image_digest=zygote.key.image_digest,
                domain=zygote.key.domain,
                preload=list(zygote.key.preload),
                forks=zygote.forks,
                age_s=round(now - zygote.born, 1),
                spares=zygote.spares.ids(),
                memory_bytes=self._memory(zygote),
                retired=zygote.retired,
            )
            for zygote in self._all.values()
        ]
        return ZygoteList(zygotes=zygotes, starting=sorted(key.domain for key in self._starting))

    def _memory(self, zygote: Zygote) -> int:
        try:
            return Cgroup(self._runtime.layout, zygote.lease.cgroup).usage().memory_bytes
        except (OSError, ContainerError):
            return 0  # not made yet, or just gone

    def _has_grown(self, zygote: Zygote) -> bool:
        return self._memory(zygote) - zygote.memory_when_ready > GROWTH_MAX

    async def close(self) -> None:
        """End all of them: the daemon stops."""
        await self._make_no_more()
        await asyncio.gather(*(self._release(z) for z in list(self._all.values())))

    async def _start(self, key: Key, image: StoredImage, profile: Profile) -> None:
        await asyncio.sleep(SETTLE_S)
        zygote_id = secrets.token_hex(6)
        scratch = self._paths.scratch_dir / zygote_id
        lease = Lease(
            id=zygote_id,
            kind="zygote",
            cgroup=f"{self._cgroup_parent}/zygotes/{zygote_id}",
            scratch=str(scratch),
        )
        limits = plan_cgroup_limits(msgspec.structs.replace(profile.limits, io=None), None)
        most = 0 if profile.limits.io else profile.spares
        spares = self._pool(zygote_id, limits, least=profile.min_spares, most=most)
        zygote = Zygote(key, lease, next(self._uids), spares)
        self._all[zygote_id] = zygote
        try:
            self._journal.write(lease)
            await self._starter.launch(zygote, image, profile)
        except (SandboxError, OSError) as exc:
            log.warning("no zygote for %s: %s", key.domain, exc)
            if not isinstance(exc, LauncherLost):  # which says nothing of the image
                self._not_before[key] = time.monotonic() + RETRY_S
            self._reasons[key] = f"no zygote: {exc}"
            await self._release(zygote)
        except BaseException:
            await asyncio.shield(self._release(zygote))
            raise
        else:
            await self._put_in_service(zygote)

    def _pool(
        self, zygote_id: str, limits: CgroupLimits, *, least: int = 0, most: int = 0
    ) -> SparePool:
        return SparePool(
            zygote_id=zygote_id,
            limits=limits,
            runtime=self._runtime,
            journal=self._journal,
            cgroup_parent=self._cgroup_parent,
            least=least,
            most=most,
            reserve=self._reserve,
            removals=self._removals,
        )

    async def take_over(self, lease: Lease, started: Started, live: int) -> None:
        """Look after a former daemon's zygote: its kernels, `live` of them, are in its namespace.

        It forks no more. Raises SandboxError when it has ended.
        """
        key = Key("", "of a former daemon", ())
        pool = self._pool(lease.id, started.spec.limits)
        zygote = Zygote(key, lease, started.spec.process.uid, pool, started=started, live=live)
        zygote.retired, zygote.upper = True, started.spec.rootfs.upper
        self._all[lease.id] = zygote
        try:
            await self._adopt(zygote, started)
        except BaseException:
            del self._all[lease.id]
            raise

    async def _adopt(self, zygote: Zygote, started: Started) -> None:
        _, (log_fd,) = await self._runtime.launcher.request(
            "adopt", early=True, spec=to_json(started.spec), pid=started.init_pid
        )
        zygote.log.adopt(log_fd)

    async def readopt(self) -> None:
        """The launcher was lost, and those in service end with it. What they forked lives on."""
        for zygote in list(self._all.values()):
            self._spawn(zygote.spares.close())
            if self._current.get(zygote.key) is zygote:
                del self._current[zygote.key]
                zygote.retired = True
            if zygote.started is not None:
                try:
                    await self._adopt(zygote, zygote.started)
                except LauncherLost:
                    raise  # which says nothing of the zygote
                except SandboxError as exc:
                    log.info("zygote %s was not adopted: %s", zygote.lease.id, exc)
                    self._spawn(self._release(zygote))

    async def forget_image(self, digest: str) -> None:
        """End the zygotes of an image, of which no kernel may run: its layers are about to go."""
        starting = [task for key, task in self._starting.items() if key.image_digest == digest]
        for task in starting:
            task.cancel()
        await asyncio.gather(*starting, return_exceptions=True)
        mine = [z for z in self._all.values() if z.key.image_digest == digest]
        await asyncio.gather(*(self._release(zygote) for zygote in mine))

    async def leave(self) -> None:
        """The daemon stops and kernels live on: end the spares, and the zygotes that have none."""
        await self._make_no_more()
        ends = [z.spares.close() if z.live else self._release(z) for z in self._all.values()]
        await asyncio.gather(*ends)

    async def _make_no_more(self) -> None:
        tasks = [*self._starting.values(), *([self._watching] if self._watching else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _put_in_service(self, zygote: Zygote) -> None:
        former = self._current.pop(zygote.key, None)
        self._current[zygote.key] = zygote
        self._reasons.pop(zygote.key, None)
        zygote.memory_when_ready = self._memory(zygote)
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())
        log.info("zygote %s serves %s", zygote.lease.id, zygote.key.domain)
        for stale in [*([former] if former else []), *self._surplus(zygote)]:
            await self._retire(stale)
        zygote.spares.refill()

    def _surplus(self, newest: Zygote) -> list[Zygote]:
        """What is more than may be: those used longest ago, of profiles that can wait first."""
        others = [zygote for zygote in self._current.values() if zygote is not newest]
        others.sort(key=lambda zygote: zygote.spares.least > 0)
        return others[: max(0, len(self._current) - self._maximum)]

    async def _watch(self) -> None:
        """End what the host has no memory for, until there is none."""
        while self._current:
            await asyncio.sleep(WATCH_S)
            for zygote in self._current.values():
                zygote.spares.refill()
            if self._current and self._reserve.is_critical():
                oldest = next(iter(self._current.values()))
                log.warning("zygote %s is retired: memory is short", oldest.lease.id)
                await self._retire(oldest)

    async def _retire(self, zygote: Zygote) -> None:
        """No more forks. Its container ends by itself once the last of its children has."""
        zygote.retired = True
        if self._current.get(zygote.key) is zygote:
            del self._current[zygote.key]
        await zygote.spares.close()
        try:
            await self._runtime.launcher.request_again(
                "retire_zygote", container_id=zygote.lease.id
            )
        finally:
            if zygote.process is not None:
                zygote.process.kill()  # one that is wedged does not see that nobody asks any more

    async def _release(self, zygote: Zygote) -> None:
        """Delete the container and give everything back. Idempotent."""
        zygote.retired = True
        if self._current.get(zygote.key) is zygote:
            del self._current[zygote.key]
        if self._all.pop(zygote.lease.id, None) is None:
            return
        await zygote.spares.close()
        if zygote.ready is not None:
            zygote.ready.close()
        if zygote.process is not None:
            zygote.process.close()
            zygote.process = None
        zygote.log.detach()
        await self._give_back(zygote)

    async def _give_back(self, zygote: Zygote) -> None:
        try:
            await self._delete(zygote)
        except FAILURES as exc:
            self._removals.failed(zygote.lease.id, exc, lambda: self._delete(zygote))

    async def _delete(self, zygote: Zygote) -> None:
        await self._runtime.launcher.request_again(
            "delete", container_id=zygote.lease.id, cgroups_path=zygote.lease.cgroup
        )
        if zygote.upper:  # the launcher keeps overlays for the next start of their layer
            await self._runtime.launcher.request_again("forget", upper=zygote.upper)
        if zygote.lease.scratch:
            await asyncio.to_thread(remove_tree, Path(zygote.lease.scratch))
        self._journal.forget(zygote.lease.id)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(_log_failure)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("background work failed", exc_info=task.exception())
