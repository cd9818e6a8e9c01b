"""One sandbox: its state machine and everything it holds. asyncio.

starting ──► running ◄──► paused
    │            │
    └──► exited ◄┘      exited ──► starting (restart)

A Sandbox is the single owner of its lease: sockets, cgroup (through the launcher), scratch layer
and log. `release` is the one way out.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sandboxkernel.daemon.endings import describe_exit
from sandboxkernel.daemon.handover import Peer, Process
from sandboxkernel.daemon.launching import launch
from sandboxkernel.daemon.lease import KernelRecord, Lease, LeaseJournal, Started
from sandboxkernel.daemon.logs import LogBuffer
from sandboxkernel.daemon.plan import Ground, plan_payload, plan_spec
from sandboxkernel.daemon.problems import convert, is_the_requests, told_if_ended
from sandboxkernel.daemon.removals import FAILURES
from sandboxkernel.daemon.runtime import Runtime
from sandboxkernel.daemon.sockets import KernelSockets
from sandboxkernel.daemon.zygotes import Claim, Key, Zygotes
from sandboxkernel.errors import KernelNotRunning, LauncherLost, SandboxError
from sandboxkernel.images.removal import remove_tree
from sandboxkernel.limits import NATIVE
from sandboxkernel.models import ExitInfo, KernelCreate, Limits
from sandboxruntime.cgroup import Cgroup
from sandboxruntime.channel import close_fds
from sandboxruntime.errors import ContainerError
from sandboxruntime.spec import Spec, to_json
from sandboxruntime.verify import Facts, read_facts, verify_running

__all__ = ["Sandbox"]

log = logging.getLogger(__name__)

State = Literal["starting", "running", "paused", "exited"]
StartPath = Literal["cold", "warm", "spare"]


@dataclass(slots=True, eq=False)
class Sandbox:
    """See the module's docstring. `on_state` is called after every change of state.

    `on_left` is called when something of a start that has ended could not be given back.
    `spares`: it may be one, whose cgroup is not below its user's, so no ceiling is over it.
    `watchers` is how many requests wait for its end; nobody has since `unwatched_since`.
    """

    request: KernelCreate
    ground: Ground
    lease: Lease
    runtime: Runtime
    journal: LeaseJournal
    image: str
    image_digest: str
    zygotes: Zygotes
    zygote_key: Key | None
    spares: bool
    on_state: Callable[[Sandbox], None]
    on_left: Callable[[Sandbox, BaseException], object]
    state: State = "starting"
    generation: int = 0
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started_at: datetime | None = None
    exit: ExitInfo | None = None
    asked_to_end: bool = False
    start_path: StartPath = "cold"
    cold_reason: str = ""
    timings: dict[str, float] = field(default_factory=dict)
    log: LogBuffer = field(default_factory=LogBuffer)
    sockets: KernelSockets | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    freezing: asyncio.Lock = field(default_factory=asyncio.Lock)  # or letting an exec's process in
    watchers: int = 0
    unwatched_since: float = field(default_factory=time.monotonic)
    process: Process | None = None
    _exited: asyncio.Event = field(default_factory=asyncio.Event)
    _spec: Spec | None = None  # of the container that the launcher may hold
    _init_pid: int | None = None  # its pid 1, once it is there
    _claim: Claim | None = None
    _ended_early: list[dict[str, Any]] = field(default_factory=list)  # ends told during a start
    released: bool = False  # or about to be: nobody can use it any more
    left_cgroup: str = ""  # of a former daemon's start, without a spec

    @property
    def id(self) -> str:
        """The sandbox's own 12 hex digits, its container id."""
        return self.lease.id

    @property
    def limits(self) -> Limits:
        """Limits in force."""
        return self.ground.limits

    async def start(self) -> None:
        """Start the program once more. On failure nothing but sockets and layer is left."""
        try:
            await self.delete_container()  # where that of the start before could not be
        except BaseException:
            self.state = "exited"
            raise
        self.state, self.exit, self.asked_to_end = "starting", None, False
        self._ended_early.clear()
        self.generation += 1
        self._exited.clear()
        try:
            if self.generation > 1:  # of a first start nobody has been told yet
                self._record()
            self.name_sockets()
            if self.sockets is not None:
                self.sockets.open()
            await self._launch_warm_or_cold()
            self.started_at = datetime.now(UTC)
            self.state = "running"
            self._record()
        except BaseException as exc:
            await self._delete_or_tell()
            self._finish(ExitInfo(reason="exited", code=1, message=str(exc), asked=True))
            raise
        self.on_state(self)
        for event in self._ended_early:
            await self.on_exit_event(event)

    def name_sockets(self) -> None:
        """Give a kernel its sockets' names, which it keeps; nothing is bound yet."""
        if self.request.argv is None and self.sockets is None:
            subject = self.ground.subject
            self.sockets = KernelSockets(Path(self.lease.sockets), uid=subject.uid, gid=subject.gid)

    async def take_over(self, started: Started, claim: Claim | None) -> None:
        """Go on with a start that a former daemon made. Raises SandboxError when that has ended.

        Its clients are connected to its program, which has the sockets; the next start binds new
        ones under the same names.
        """
        self._spec, self._init_pid = started.spec, started.init_pid
        self._claim = claim
        _, (log_fd,) = await self.runtime.launcher.request(
            "adopt", early=True, spec=to_json(started.spec), pid=started.init_pid
        )
        self.log.adopt(log_fd)
        try:
            cgroup = Cgroup.attach(self.runtime.layout, started.spec.cgroups_path)
            if cgroup.is_frozen():
                self.state = "paused"
            peer = Peer.find(started.pid, started.ticks)
            if peer is None:
                return  # its program has ended, and pid 1 is about to say how
            facts = read_facts(peer.pid)
            self.process = Process(peer, cgroup, facts, started.filters, started.ticks)
            verify_running(
                facts, started.spec, cgroup, self.runtime.host_namespaces, filters=started.filters
            )
        except ContainerError as exc:
            raise convert(exc) from exc
        except OSError as exc:
            raise KernelNotRunning(f"it ended while it was taken over: {exc}") from exc

    async def readopt(self) -> None:
        """Have a new launcher look after what the former one did."""
        if self._spec is None or self._init_pid is None:
            return
        try:
            _, fds = await self.runtime.launcher.request(
                "adopt", early=True, spec=to_json(self._spec), pid=self._init_pid
            )
            close_fds(fds)  # the log is in our hands still
        except LauncherLost:
            raise  # which says nothing of the sandbox
        except SandboxError as exc:
            log.info("sandbox %s was not adopted: %s", self.id, exc)
            task = asyncio.create_task(self.bury())
            task.add_done_callback(lambda done: done.exception())

    async def bury(self) -> None:
        """The end of a start whose end nobody saw: what the cgroup tells of it."""
        event: dict[str, Any] = {"wait_status": None, "oom_kills": 0, "memory_peak_bytes": 0}
        if self._spec is not None:
            with contextlib.suppress(OSError, ContainerError):
                usage = Cgroup(self.runtime.layout, self._spec.cgroups_path).usage()
                event["oom_kills"] = usage.oom_kills
                event["memory_peak_bytes"] = usage.memory_peak_bytes
        await self.on_exit_event(event)

    def _record(self, exit_info: ExitInfo | None = None) -> None:
        """Write the journal: what a daemon that comes after this one must know."""
        if self.released:
            return
        process, started = self.process, None
        if process is not None and self._spec is not None and self._init_pid is not None:
            started = process.started(self._spec, self._init_pid)
        claim = self._claim
        spare = claim.spare if claim is not None else None
        kernel = KernelRecord(
            request=self.request,
            ground=self.ground,
            image=self.image,
            image_digest=self.image_digest,
            spares=self.spares,
            generation=self.generation,
            created_at=self.created_at,
            started_at=self.started_at,
            exit=exit_info,
            start_path=self.start_path,
            cold_reason=self.cold_reason,
            timings=self.timings,
            zygote=claim.zygote_id if claim is not None else None,
            spare=spare.id if spare is not None else None,
        )
        self.journal.write(self.lease, kernel, started if exit_info is None else None)

    async def _launch_warm_or_cold(self) -> None:
        """From a zygote where there is one; whatever is wrong with it, a cold start mends."""
        claim = self.zygotes.claim(self.zygote_key, spares=self.spares)
        if claim is None:
            reason = self.zygotes.why_none(self.zygote_key)
            if self.ground.profile.executor != NATIVE:
                reason = f"containers of {self.ground.profile.executor} have no zygote"
            elif self.zygote_key is None and self.request.environment is not None:
                reason = "no zygote has its environment's kernel"
        else:
            self._claim = claim
            try:
                await self._launch(claim)
                return
            except SandboxError as exc:
                if not is_the_requests(exc):
                    self.zygotes.blame(claim.zygote_id, exc)
                reason = f"the fork failed: {exc}"
                await self.delete_container()
        try:
            await self._launch(None)
        except LauncherLost:  # the next one is being started
            await self.delete_container()
            await self._launch(None)
        self.cold_reason = reason if self.request.argv is None else ""

    async def _launch(self, claim: Claim | None) -> None:
        spec = plan_spec(self.request, self.ground)
        spare = claim.spare if claim is not None else None
        if spare is not None:
            spec = dataclasses.replace(spec, cgroups_path=spare.cgroup)
        payload = plan_payload(
            self.request,
            self.ground,
            socket_prefix=self.sockets.prefix if self.sockets else "",
            guest_source=self.runtime.guest_source,
        )
        # Before the request: the launcher goes on with one whose caller has gone.
        self._spec = spec
        log_fd = self.log.attach()
        try:
            launched = await launch(
                self.runtime, spec, payload,
                log_fd=log_fd,
                fds=self.sockets.descriptors() if self.sockets else [],
                zygote=claim.zygote_id if claim is not None else None,
                spare=spare.id if spare is not None else None,
                on_created=self._on_created,
            )  # fmt: skip
        finally:
            os.close(log_fd)
        self.process, self.cold_reason = launched.process, launched.executed
        if launched.executed:
            self.start_path = "cold"
        elif claim is not None and self.start_path == "cold":
            self.cold_reason = "its zygote had just ended"

    def _on_created(self, reply: dict[str, Any]) -> None:
        self._init_pid, self.start_path = reply["pid"], reply["path"]
        self.timings = {str(k): float(v) for k, v in reply["timings"].items()}

    async def on_exit_event(self, event: dict[str, Any]) -> None:
        """The launcher saw the program end: give the container back and tell everybody.

        An end may be that of an attempt to start which has failed, and another one may have
        followed: `pid` tells whose it is.
        """
        if self.state == "starting":
            self._ended_early.append(event)  # the start knows what to do with it
            return
        if event.get("pid", self._init_pid) != self._init_pid:
            return
        exit_info = describe_exit(
            event["wait_status"],
            oom_kills=event["oom_kills"],
            memory_peak_bytes=int(event["memory_peak_bytes"]),
            memory_limit_bytes=self.limits.memory_bytes,
            profile=self.ground.profile.name,
            generation=self.generation,
            asked=self.asked_to_end,
        )
        try:
            self._record(exit_info)  # first: with the container goes what tells how it ended
        except OSError:  # no room: what has ended must go all the same
            log.exception("the end of sandbox %s is not recorded", self.id)
        await self._delete_or_tell()
        self.log.drain()
        if self.state != "exited":
            self._finish(exit_info)

    def _finish(self, exit_info: ExitInfo) -> None:
        self.state, self.exit = "exited", exit_info
        if self.process is not None:
            self.process.peer.close()
            self.process = None
        self.log.detach()
        self._exited.set()
        self.on_state(self)

    async def wait(self, generation: int) -> ExitInfo:
        """The exit of a start; a start that has been followed by another has ended by a restart."""
        self.watchers += 1
        try:
            while True:
                if generation < self.generation:
                    return ExitInfo(
                        reason="signaled", signal=9, message="restarted", asked=True,
                        generation=generation,
                    )  # fmt: skip
                if self.exit is not None:
                    return self.exit
                await self._exited.wait()
        finally:
            self.watchers -= 1
            self.unwatched_since = time.monotonic()

    def is_orphan(self, lease_s: float) -> bool:
        """Whether it is a kernel whose Jupyter server has not been heard of for so long."""
        return (
            self.request.argv is None
            and not self.watchers
            and not self.lock.locked()
            and time.monotonic() - self.unwatched_since > lease_s
        )

    def send_signal(self, signum: int) -> None:
        """Signal the program's process group, in its PID namespace, free of pid reuse."""
        try:
            self._require_process().peer.signal_group(signum)
        except ProcessLookupError:
            raise KernelNotRunning(f"kernel {self.request.kernel_id} has ended") from None

    async def kill(self) -> None:
        """SIGKILL for everything inside; returns when the exit has been recorded."""
        self.asked_to_end = True
        if self.state in ("running", "paused") and self._spec is not None:
            await asyncio.to_thread(Cgroup(self.runtime.layout, self._spec.cgroups_path).kill)
            await self._exited.wait()

    async def pause(self) -> None:
        """Freeze every process."""
        async with self.lock, self.freezing:  # a restart makes a cgroup of the same name
            process = self._require_process()
            with told_if_ended(self.request.kernel_id):
                await asyncio.to_thread(process.cgroup.freeze)
            if self._require_process() is process:
                self.state = "paused"
                self.on_state(self)

    async def unpause(self) -> None:
        """Let a paused sandbox go on."""
        with told_if_ended(self.request.kernel_id):
            await asyncio.to_thread(self._require_process().cgroup.thaw)
        if self.state == "paused":
            self.state = "running"
            self.on_state(self)

    async def stop(self, timeout_s: float) -> None:
        """SIGTERM, then SIGKILL after a while."""
        if self.process is None:
            return
        self.asked_to_end = True
        if self.state == "paused":
            await self.unpause()
        self.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._exited.wait(), timeout_s)
        except TimeoutError:
            await self.kill()

    async def release(self) -> None:
        """Kill what runs and give everything back. Idempotent."""
        self.released = True  # first: whatever fails, it is the removal that is tried again
        await self.kill()
        await self.delete_container()
        if self.sockets is not None:
            self.sockets.remove()
        self.log.detach()
        if self.lease.scratch:
            await self.runtime.launcher.request_again("forget", upper=self.ground.upper)
            await asyncio.to_thread(remove_tree, Path(self.lease.scratch))

    async def _delete_or_tell(self) -> None:
        """What has ended has ended, also where its container stays for now."""
        try:
            await self.delete_container()
        except FAILURES as exc:
            self.on_left(self, exc)

    async def delete_container(self) -> None:
        """Give back what the launcher holds of the last start. Idempotent."""
        spec, self._init_pid = self._spec, None
        if path := spec.cgroups_path if spec is not None else self.left_cgroup:
            await self.runtime.launcher.request_again(
                "delete", container_id=self.id, cgroups_path=path
            )
            self.left_cgroup = ""
            if self._spec is spec:  # and not, meanwhile, that of another start
                self._spec = None
        if self._claim is not None:
            self.zygotes.give_back(self._claim)
            self._claim = None

    def _require_process(self) -> Process:
        if self.process is None or self._init_pid is None:  # its container is being removed
            what = f"kernel {self.request.kernel_id} is {'ending' if self.process else self.state}"
            raise KernelNotRunning(what, hint="Restart it first.")
        return self.process

    def spec(self) -> Spec:
        """The spec of the running start."""
        self._require_process()
        assert self._spec is not None
        return self._spec

    def facts(self) -> Facts:
        """What Linux said of the program of the running start when it was taken over."""
        return self._require_process().facts

    def cgroup(self) -> Cgroup:
        """The cgroup of the running start."""
        return self._require_process().cgroup
