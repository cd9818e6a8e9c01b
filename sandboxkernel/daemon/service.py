"""What callers may do with sandboxes: authorisation, allocation, lookup. asyncio.

Every method takes the caller first. To a caller, what belongs to another uid does not exist.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from sandboxkernel.daemon.ceilings import Ceilings
from sandboxkernel.daemon.environments import check_environment, own_folders, zygote_key
from sandboxkernel.daemon.events import EventLog
from sandboxkernel.daemon.execs import Execs
from sandboxkernel.daemon.homes import hidden_entries
from sandboxkernel.daemon.ids import IdRanges
from sandboxkernel.daemon.images import Images, lineage_of
from sandboxkernel.daemon.lease import KernelRecord, Lease, LeaseJournal
from sandboxkernel.daemon.logformat import about
from sandboxkernel.daemon.plan import Ground, work_folder_of
from sandboxkernel.daemon.policy import Policy
from sandboxkernel.daemon.removals import FAILURES, Removals
from sandboxkernel.daemon.runtime import Runtime
from sandboxkernel.daemon.sandbox import Sandbox
from sandboxkernel.daemon.zygotes import Zygotes
from sandboxkernel.errors import (
    Conflict,
    KernelNotFound,
    RemovalPending,
    ResourcesExhausted,
)
from sandboxkernel.images.store import StoredImage
from sandboxkernel.images.userlayers import UserLayers
from sandboxkernel.limits import (
    Grant,
    Profile,
    Subject,
    check_wish,
    clamp,
    most,
)
from sandboxkernel.models import Event, KernelCreate, KernelRestart, Limits, Removal
from sandboxkernel.paths import Paths

__all__ = ["Kernels"]

log = logging.getLogger(__name__)

EXITED_MAX = 50  # ended sandboxes kept per user until somebody removes them
PREFIX_MIN = 4


class Kernels:
    """All sandboxes of this daemon."""

    def __init__(
        self,
        *,
        policy: Policy,
        paths: Paths,
        runtime: Runtime,
        zygotes: Zygotes,
        images: Images,
        layers: UserLayers,
        ids: IdRanges,
        journal: LeaseJournal,
        events: EventLog,
        removals: Removals,
    ) -> None:
        self.policy = policy
        self.removals = removals
        self.images = images
        self.layers = layers
        self.events = events
        self._paths = paths
        self.runtime = runtime
        self.zygotes = zygotes
        self._ids = ids
        self._journal = journal
        self._sandboxes: dict[str, Sandbox] = {}
        self._starting: dict[int, set[str]] = {}  # kernel ids by uid, not yet in _sandboxes
        self.execs = Execs(runtime.launcher)
        self._ceilings = Ceilings(runtime.layout, policy.cgroup_parent, paths.data_dir)

    def all(self) -> Iterable[Sandbox]:
        """Every sandbox, for the daemon itself."""
        return self._sandboxes.values()

    def leases(self) -> set[str]:
        """Ids of sandboxes, zygotes and spares, also of those being started."""
        return self._journal.ids()

    def visible(self, caller: Subject) -> list[Sandbox]:
        """The caller's sandboxes, oldest first; all of them for an administrator."""
        admin = self.policy.is_admin(caller)
        return [s for s in self._sandboxes.values() if admin or s.ground.subject.uid == caller.uid]

    def may_see(self, caller: Subject, event: Event) -> bool:
        """Whether an event is the caller's to know."""
        return self.policy.is_admin(caller) or event.owner_uid == caller.uid

    def find(self, caller: Subject, name: str) -> Sandbox:
        """By Jupyter's kernel id, the sandbox's id, or an unambiguous prefix of either."""
        mine = self.visible(caller)
        exact = [s for s in mine if name in (s.request.kernel_id, s.id)]
        own = [s for s in exact if s.ground.subject.uid == caller.uid]
        found = own or exact
        if not found and len(name) >= PREFIX_MIN:
            found = [
                s for s in mine if s.id.startswith(name) or s.request.kernel_id.startswith(name)
            ]
        if len(found) > 1:
            raise Conflict(f"{name!r} names {len(found)} kernels", hint="Use more of the id.")
        if not found:
            raise KernelNotFound(f"no kernel {name!r}")
        return found[0]

    async def create(self, caller: Subject, request: KernelCreate) -> Sandbox:
        """Start a sandbox for the caller. On failure nothing of it is left."""
        profile, grant = self.policy.profile_for(caller, request.profile)
        check_wish(request.limits)
        work_folder_of(request)
        limits = clamp(request.limits, profile.limits, most(profile.maximum, grant.ceiling))
        self._reserve(caller, grant, request.kernel_id)
        sandbox: Sandbox | None = None
        try:
            image = await self.images.ensure(profile.image)
            sandbox = await self._allocate(
                caller, request, profile=profile, grant=grant, limits=limits, image=image
            )
            self._unreserve(caller, request.kernel_id)  # from here on it counts as a sandbox
            async with sandbox.lock:
                await sandbox.start()
            self.zygotes.want(sandbox.zygote_key, image, profile)
            return sandbox
        except BaseException:
            if sandbox is not None:
                with contextlib.suppress(RemovalPending):  # why it did not start is the news
                    await asyncio.shield(self._release(sandbox))
            raise
        finally:
            self._unreserve(caller, request.kernel_id)

    def _reserve(self, caller: Subject, grant: Grant, kernel_id: str) -> None:
        mine = [s for s in self._sandboxes.values() if s.ground.subject.uid == caller.uid]
        taken = {s.request.kernel_id for s in mine} | self._starting.get(caller.uid, set())
        if kernel_id in taken:
            raise Conflict(f"kernel {kernel_id} exists", hint="Restart or remove it.")
        self._check_quotas(caller, grant)
        self._starting.setdefault(caller.uid, set()).add(kernel_id)

    def _check_quotas(self, owner: Subject, grant: Grant) -> None:
        """Whether one more may run. Raises ResourcesExhausted."""
        uids = [s.ground.subject.uid for s in self._sandboxes.values() if s.state != "exited"]
        running = uids.count(owner.uid) + len(self._starting.get(owner.uid, ()))
        if running >= grant.max_kernels:
            raise ResourcesExhausted(
                f"quota: {running} of {grant.max_kernels} kernels of {owner.name} are running",
                hint="Shut one down first.",
                retry_after_s=5,
            )
        if len(uids) + sum(map(len, self._starting.values())) >= self.policy.max_kernels:
            raise ResourcesExhausted(
                f"this host runs {self.policy.max_kernels} kernels, its maximum", retry_after_s=30
            )

    def _unreserve(self, caller: Subject, kernel_id: str) -> None:
        starting = self._starting.get(caller.uid, set())
        starting.discard(kernel_id)
        if not starting:
            self._starting.pop(caller.uid, None)

    async def _allocate(
        self,
        caller: Subject,
        request: KernelCreate,
        *,
        profile: Profile,
        grant: Grant,
        limits: Limits,
        image: StoredImage,
    ) -> Sandbox:
        hidden = hidden_entries(caller, profile, work_folder_of(request))
        check_environment(request, image.labels, hidden)
        sandbox_id = secrets.token_hex(6)
        base = self._ids.base_of(caller.uid)
        ephemeral = request.ephemeral or profile.ephemeral
        scratch = self._paths.scratch_dir / sandbox_id if ephemeral else None
        lease = Lease(
            id=sandbox_id,
            cgroup=f"{self.policy.cgroup_parent}/{caller.uid}/{sandbox_id}",
            sockets=str(self._paths.kernels_dir / sandbox_id),
            scratch=str(scratch) if scratch else None,
        )
        self._journal.write(lease)
        try:
            if scratch is not None:
                dirs = await asyncio.to_thread(self.layers.scratch, scratch, base)
            else:
                dirs = await asyncio.to_thread(
                    self.layers.ensure, caller.uid, lineage_of(image), base
                )
            self._ceilings.apply(caller, grant)
            ground = Ground(
                container_id=sandbox_id,
                subject=caller,
                profile=profile,
                limits=limits,
                layers=tuple(str(path) for path in image.layer_dirs),
                upper=str(dirs.upper),
                work=str(dirs.work),
                volatile=ephemeral,
                id_base=base,
                cgroup=lease.cgroup,
                image_env=image.environment,
                image_labels=image.labels,
                hidden=hidden,
                environment_roots=own_folders(),
                disk=self._ceilings.disk_for(limits),
                cores=os.cpu_count() or 1,
                package=self.runtime.package,
            )
        except BaseException:
            self._journal.forget(sandbox_id)
            raise
        return self._add(
            request,
            ground,
            lease,
            image=image.ref,
            image_digest=str(image.digest),
            spares=grant.ceiling == Limits(),
        )

    def _add(
        self, request: KernelCreate, ground: Ground, lease: Lease, *, image: str,
        image_digest: str, spares: bool, **state: Any,
    ) -> Sandbox:  # fmt: skip
        sandbox = Sandbox(
            request=request,
            ground=ground,
            lease=lease,
            runtime=self.runtime,
            journal=self._journal,
            image=image,
            image_digest=image_digest,
            zygotes=self.zygotes,
            zygote_key=zygote_key(request, image_digest, ground.profile, ground.subject),
            spares=spares,
            on_state=self._on_state,
            on_left=self.on_left,
            **state,
        )
        self._sandboxes[lease.id] = sandbox
        return sandbox

    def restore(self, lease: Lease, kernel: KernelRecord) -> Sandbox:
        """A sandbox as a former daemon's journal has it; its program has yet to be taken over."""
        sandbox = self._add(
            kernel.request,
            kernel.ground,
            lease,
            image=kernel.image,
            image_digest=kernel.image_digest,
            spares=kernel.spares,
            state="running" if kernel.exit is None else "exited",
            generation=kernel.generation,
            created_at=kernel.created_at,
            started_at=kernel.started_at,
            exit=kernel.exit,
            start_path=kernel.start_path,
            cold_reason=kernel.cold_reason,
            timings=kernel.timings,
        )
        sandbox.name_sockets()
        return sandbox

    @staticmethod
    def _log_state(sandbox: Sandbox) -> None:
        said: str = sandbox.start_path
        if sandbox.exit is not None:
            said = sandbox.exit.message or f"exit code {sandbox.exit.code}"
        log.info(
            "kernel is %s: %s",
            sandbox.state,
            said,
            extra=about(
                kernel=sandbox.request.kernel_id,
                user=sandbox.ground.subject.name,
                sandbox=sandbox.id,
            ),
        )

    def _on_state(self, sandbox: Sandbox) -> None:
        detail: dict[str, object] = {"state": sandbox.state, "generation": sandbox.generation}
        if sandbox.exit is not None:
            detail |= {"reason": sandbox.exit.reason, "message": sandbox.exit.message}
        self._log_state(sandbox)
        self.events.publish(
            f"kernel_{sandbox.state}",
            kernel_id=sandbox.request.kernel_id,
            owner_uid=sandbox.ground.subject.uid,
            **detail,
        )
        if sandbox.state == "exited":
            self._drop_oldest_exited(sandbox.ground.subject.uid)

    def _drop_oldest_exited(self, uid: int) -> None:
        ended = [
            s
            for s in self._sandboxes.values()
            if s.state == "exited" and s.ground.subject.uid == uid and s.id not in self.removals
        ]
        for sandbox in ended[: max(0, len(ended) - EXITED_MAX)]:
            task = asyncio.create_task(self._release(sandbox))
            task.add_done_callback(_log_failure)

    async def restart(self, caller: Subject, name: str, request: KernelRestart) -> Sandbox:
        """End what runs and start again on the same sockets and layer."""
        sandbox = self.find(caller, name)
        async with sandbox.lock:
            if sandbox.released:
                raise Conflict(f"kernel {sandbox.request.kernel_id} is being removed")
            changed = msgspec.structs.replace(
                sandbox.request,
                cwd=request.cwd or sandbox.request.cwd,
                env=request.env or sandbox.request.env,
                extra_arguments=request.extra_arguments or sandbox.request.extra_arguments,
            )
            work_folder_of(changed)
            if sandbox.state == "exited":  # what runs is counted already
                owner = sandbox.ground.subject
                self._check_quotas(owner, self.policy.grant_of(owner))
                sandbox.state = "starting"
            await sandbox.kill()
            sandbox.request = changed
            await sandbox.start()
            self.removals.done(sandbox.id)  # what the former start had left
        return sandbox

    async def remove(self, caller: Subject, name: str) -> None:
        """Kill and give everything back."""
        sandbox = self.find(caller, name)
        await asyncio.shield(self._release(sandbox))

    async def _release(self, sandbox: Sandbox) -> None:
        """Raises RemovalPending where that fails; it is tried again in the background."""
        async with sandbox.lock:
            if self._sandboxes.get(sandbox.id) is not sandbox:
                return
            try:
                await sandbox.release()
            except FAILURES as exc:
                state = self.on_left(sandbox, exc)
                with contextlib.suppress(OSError):  # the next daemon is to go on with it, too
                    self._journal.write(sandbox.lease)
                raise RemovalPending(
                    f"kernel {sandbox.request.kernel_id} cannot be given back yet: {state.reason}",
                    hint="The daemon tries again by itself; `inspect` says how it goes.",
                ) from exc
            del self._sandboxes[sandbox.id]
            self._journal.forget(sandbox.id)
            self.removals.done(sandbox.id)
        self.events.publish(
            "kernel_removed",
            kernel_id=sandbox.request.kernel_id,
            owner_uid=sandbox.ground.subject.uid,
        )

    def on_left(self, sandbox: Sandbox, exc: BaseException) -> Removal:
        """Something of a sandbox that has ended stays for now: try again, and tell it."""
        state = self.removals.failed(sandbox.id, exc, lambda: self._release_again(sandbox))
        self.events.publish(
            "kernel_removal_failed",
            kernel_id=sandbox.request.kernel_id,
            owner_uid=sandbox.ground.subject.uid,
            **msgspec.to_builtins(state),
        )
        return state

    async def _release_again(self, sandbox: Sandbox) -> None:
        if sandbox.released:
            await self._release(sandbox)
            return
        async with sandbox.lock:  # its user may look at it, and start it again
            if sandbox.state == "exited":
                await sandbox.delete_container()

    async def readopt(self) -> None:
        """The launcher was killed: have the next one look after everything that runs."""
        self.execs.lose()
        await self.zygotes.readopt()
        for sandbox in list(self._sandboxes.values()):
            await sandbox.readopt()

    async def end_orphans(self, lease_s: float) -> None:
        """Release kernels whose Jupyter server has not been heard of for so long."""
        orphans = [s for s in self._sandboxes.values() if s.is_orphan(lease_s)]
        for sandbox in [s for s in orphans if s.id not in self.removals]:
            log.warning(
                "kernel %s is ended: its server has been gone for %g s",
                sandbox.request.kernel_id, lease_s,
            )  # fmt: skip
            with contextlib.suppress(RemovalPending):
                await self._release(sandbox)

    async def release_all(self) -> None:
        """End every sandbox: the daemon stops. What is left is in the journal, for the next one."""

        async def release(sandbox: Sandbox) -> None:
            with contextlib.suppress(RemovalPending):
                await self._release(sandbox)

        await asyncio.gather(*(release(s) for s in list(self._sandboxes.values())))
        await self.zygotes.close()

    def on_launcher_event(self, event: dict[str, object]) -> None:
        """Exits, as the launcher reports them."""
        if event.get("event") == "exec_exit":
            self.execs.on_exit(event)
            return
        sandbox = self._sandboxes.get(str(event.get("container_id")))
        if sandbox is None:
            self.zygotes.on_exit(event)
            return
        task = asyncio.create_task(sandbox.on_exit_event(event))
        task.add_done_callback(_log_failure)

    def layer_in_use(self, upper: Path) -> int:
        """How many running sandboxes use a user layer."""
        return sum(s.ground.upper == str(upper) and s.state != "exited" for s in self.all())

    def image_in_use(self, digest: str) -> int:
        """How many sandboxes, ended ones too, were made from an image."""
        return sum(s.image_digest == digest for s in self.all())


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("background work failed", exc_info=task.exception())
