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
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sandboxkernel import units
from sandboxkernel.daemon.handover import HandOver, Peer
from sandboxkernel.daemon.lease import Lease
from sandboxkernel.daemon.logs import LogBuffer
from sandboxkernel.daemon.plan import Ground, plan_payload, plan_spec
from sandboxkernel.daemon.problems import convert
from sandboxkernel.daemon.runtime import Runtime
from sandboxkernel.daemon.sockets import KernelSockets
from sandboxkernel.daemon.zygotes import Claim, Key, Zygotes
from sandboxkernel.errors import KernelNotRunning, SandboxError
from sandboxkernel.models import (
    Confinement,
    ConnectionInfo,
    ExitInfo,
    Kernel,
    KernelCreate,
    Limits,
    Stats,
)
from sandboxruntime import landlock
from sandboxruntime.cgroup import Cgroup
from sandboxruntime.errors import ContainerError
from sandboxruntime.spec import Spec, to_json
from sandboxruntime.verify import Facts, verify, verify_init

__all__ = ["Sandbox"]

State = Literal["starting", "running", "paused", "exited"]
StartPath = Literal["cold", "warm", "spare"]


@dataclass(slots=True)
class _Process:
    """A running start of a sandbox."""

    peer: Peer
    cgroup: Cgroup
    facts: Facts
    spec: Spec


@dataclass(slots=True, eq=False)
class Sandbox:
    """See the module's docstring. `on_state` is called after every change of state.

    `spares`: it may be one, whose cgroup is not below its user's, so no ceiling is over it.
    """

    request: KernelCreate
    ground: Ground
    lease: Lease
    runtime: Runtime
    image: str
    image_digest: str
    zygotes: Zygotes
    zygote_key: Key | None
    spares: bool
    on_state: Callable[[Sandbox], None]
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
    _process: _Process | None = None
    _exited: asyncio.Event = field(default_factory=asyncio.Event)
    _created: bool = False  # the launcher holds a container of ours
    _claim: Claim | None = None

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
        self.state, self.exit, self.asked_to_end = "starting", None, False
        self.generation += 1
        self._exited.clear()
        if self.request.argv is None and self.sockets is None:
            subject = self.ground.subject
            self.sockets = KernelSockets(Path(self.lease.sockets), uid=subject.uid, gid=subject.gid)
        if self.sockets is not None:
            self.sockets.open()
        try:
            await self._launch_warm_or_cold()
        except BaseException as exc:
            await self._delete_container()
            self._finish(ExitInfo(reason="exited", code=1, message=str(exc), asked=True))
            raise
        self.started_at = datetime.now(UTC)
        if self.state == "starting":  # its exit may have been reported already
            self.state = "running"
        self.on_state(self)

    async def _launch_warm_or_cold(self) -> None:
        """From a zygote where there is one; whatever is wrong with it, a cold start mends."""
        claim = self.zygotes.claim(self.zygote_key, spares=self.spares)
        if claim is None:
            reason = self.zygotes.why_none(self.zygote_key)
            if self.zygote_key is None and self.request.environment is not None:
                reason = "no zygote has its environment's kernel"
        else:
            self._claim = claim
            try:
                await self._launch(claim)
                return
            except SandboxError as exc:
                reason = f"the fork failed: {exc}"
                self.zygotes.blame(claim.zygote_id, exc)
                await self._delete_container()
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
        stack = contextlib.ExitStack()
        handover = HandOver()
        stack.callback(handover.close)
        log_fd = self.log.attach()
        stack.callback(os.close, log_fd)
        try:
            # Before the request: the launcher goes on with one whose caller has gone.
            self._created = True
            handover.begin()
            reply, fds = await self.runtime.launcher.request(
                "create",
                [handover.theirs.fileno(), log_fd],
                spec=to_json(spec),
                zygote=claim.zygote_id if claim is not None else None,
                spare=spare.id if spare is not None else None,
            )
            (init_pidfd,) = fds
            stack.callback(os.close, init_pidfd)
            handover.theirs.close()
            self.timings = {str(k): float(v) for k, v in reply["timings"].items()}
            self.start_path = reply["path"]
            filters = self.runtime.host_filters + (1 if reply["path"] == "cold" else 2)
            cgroup = Cgroup.attach(self.runtime.layout, spec.cgroups_path)

            def judge(facts: Facts) -> None:
                verify(facts, spec, cgroup, self.runtime.host_namespaces, filters=filters)
                verify_init(reply["pid"], init_pidfd, spec, filters=filters)

            peer, facts, result = await handover.run(
                judge,
                payload,
                self.sockets.descriptors() if self.sockets else [],
            )
            self._process = _Process(peer, cgroup, facts, spec)
            self.cold_reason = result.executed
            if result.executed:
                self.start_path = "cold"
            elif claim is not None and reply["path"] == "cold":
                self.cold_reason = "its zygote had just ended"
        except ContainerError as exc:
            raise convert(exc) from exc
        finally:
            stack.close()

    async def on_exit_event(self, event: dict[str, Any]) -> None:
        """The launcher saw pid 1 end: give the container back and tell everybody."""
        self.log.drain()
        exit_info = self._describe_exit(event)
        await self._delete_container()
        if self.state != "exited":
            self._finish(exit_info)

    def _finish(self, exit_info: ExitInfo) -> None:
        self.state, self.exit = "exited", exit_info
        if self._process is not None:
            self._process.peer.close()
            self._process = None
        self.log.detach()
        self._exited.set()
        self.on_state(self)

    def _describe_exit(self, event: dict[str, Any]) -> ExitInfo:
        status = event["wait_status"]
        peak = int(event["memory_peak_bytes"])
        common: dict[str, Any] = {
            "asked": self.asked_to_end,
            "generation": self.generation,
            "memory_peak_bytes": peak,
        }
        if event["oom_kills"]:
            limit = self.limits.memory_bytes or 0
            message = (
                f"memory limit {units.format_size(limit)} reached "
                f"(peak {units.format_size(peak)}); the limit comes from profile "
                f"{self.ground.profile.name}"
            )
            return ExitInfo(reason="oom_killed", signal=9, message=message, **common)
        if status is None:
            return ExitInfo(reason="signaled", signal=9, message="killed (SIGKILL)", **common)
        if os.WIFSIGNALED(status):
            signum = os.WTERMSIG(status)
            name = signal.Signals(signum).name if signum in signal.valid_signals() else str(signum)
            return ExitInfo(reason="signaled", signal=signum, message=f"killed ({name})", **common)
        code = os.WEXITSTATUS(status)
        return ExitInfo(reason="exited", code=code, message=f"exited with code {code}", **common)

    async def wait(self, generation: int) -> ExitInfo:
        """The exit of a start; a start that has been followed by another has ended by a restart."""
        while True:
            if generation < self.generation:
                return ExitInfo(
                    reason="signaled",
                    signal=9,
                    message="restarted",
                    asked=True,
                    generation=generation,
                )
            if self.exit is not None:
                return self.exit
            await self._exited.wait()

    def send_signal(self, signum: int) -> None:
        """Signal the program's process group, in its PID namespace, free of pid reuse."""
        try:
            self._require_process().peer.signal_group(signum)
        except ProcessLookupError:
            raise KernelNotRunning(f"kernel {self.request.kernel_id} has ended") from None

    async def kill(self) -> None:
        """SIGKILL for everything inside; returns when the exit has been recorded."""
        self.asked_to_end = True
        process = self._process
        if process is not None:
            await asyncio.to_thread(process.cgroup.kill)
            await self._exited.wait()

    async def pause(self) -> None:
        """Freeze every process."""
        process = self._require_process()
        await asyncio.to_thread(process.cgroup.freeze)
        self.state = "paused"
        self.on_state(self)

    async def unpause(self) -> None:
        """Let a paused sandbox go on."""
        process = self._require_process()
        await asyncio.to_thread(process.cgroup.thaw)
        if self.state == "paused":
            self.state = "running"
            self.on_state(self)

    async def stop(self, timeout_s: float) -> None:
        """SIGTERM, then SIGKILL after a while."""
        if self._process is None:
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
        await self.kill()
        await self._delete_container()
        if self.sockets is not None:
            self.sockets.remove()
        self.log.detach()
        if self.lease.scratch:
            await self.runtime.launcher.request("forget", upper=self.ground.upper)
            await asyncio.to_thread(shutil.rmtree, self.lease.scratch, ignore_errors=True)

    async def _delete_container(self) -> None:
        if self._created:
            self._created = False
            await self.runtime.launcher.request("delete", container_id=self.id)
        if self._claim is not None:
            self.zygotes.give_back(self._claim)
            self._claim = None

    def _require_process(self) -> _Process:
        if self._process is None:
            raise KernelNotRunning(
                f"kernel {self.request.kernel_id} is {self.state}", hint="Restart it first."
            )
        return self._process

    def spec(self) -> Spec:
        """The spec of the running start."""
        return self._require_process().spec

    def cgroup(self) -> Cgroup:
        """The cgroup of the running start."""
        return self._require_process().cgroup

    def stats(self) -> Stats:
        """What the sandbox uses now."""
        usage = self._require_process().cgroup.usage()
        return Stats(
            kernel_id=self.request.kernel_id,
            time=datetime.now(UTC),
            memory_bytes=usage.memory_bytes,
            memory_peak_bytes=usage.memory_peak_bytes,
            memory_limit_bytes=self.limits.memory_bytes,
            cpu_usage_s=usage.cpu_usage_us / 1e6,
            cpu_throttled_s=usage.cpu_throttled_us / 1e6,
            cpus=self.limits.cpus,
            pids=usage.pids,
            pids_limit=self.limits.pids,
            io_read_bytes=usage.io_read_bytes,
            io_write_bytes=usage.io_write_bytes,
            oom_kills=usage.oom_kills,
        )

    def model(self, *, detail: bool = False) -> Kernel:
        """What the API says of this sandbox. `detail` adds what outside verification read."""
        process = self._process
        subject = self.ground.subject
        return Kernel(
            kernel_id=self.request.kernel_id,
            id=self.id,
            kernel_name=self.request.kernel_name,
            owner_uid=subject.uid,
            owner_name=subject.name,
            profile=self.ground.profile.name,
            image=self.image,
            image_digest=self.image_digest,
            state=self.state,
            generation=self.generation,
            pid=process.peer.pid if process else None,
            created_at=self.created_at,
            started_at=self.started_at,
            limits=self.limits,
            cwd=self.request.cwd,
            ephemeral=self.lease.scratch is not None,
            connection=ConnectionInfo(ip=self.sockets.prefix) if self.sockets else None,
            exit=self.exit,
            confinement=_confinement(process.facts) if detail and process else None,
            start_path=self.start_path,
            cold_reason=self.cold_reason,
            timings_ms=self.timings,
        )


def _confinement(facts: Facts) -> Confinement:
    return Confinement(
        namespaces=dict(facts.namespaces),
        uid_map=" ".join(facts.uid_map.split()),
        gid_map=" ".join(facts.gid_map.split()),
        capabilities={k: v.strip() for k, v in facts.status.items() if k.startswith("Cap")},
        no_new_privs=facts.status["NoNewPrivs"].strip() == "1",
        seccomp_filters=int(facts.status.get("Seccomp_filters", "1")),
        landlock_abi=landlock.abi_version(),
        cgroups={
            (parts[1] or "unified"): parts[2]
            for parts in (line.split(":", 2) for line in facts.cgroup.splitlines())
        },
        mounts=[line.split(" ")[4] for line in facts.mountinfo.splitlines()],
    )
