"""One zygote: what the daemon knows of it, and its start. asyncio."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
from msgspec import Struct

from sandboxkernel.daemon.handover import HandOver, Peer
from sandboxkernel.daemon.lease import Lease, LeaseJournal, Started
from sandboxkernel.daemon.logs import LogBuffer
from sandboxkernel.daemon.plan import ZygoteGround, plan_zygote_payload, plan_zygote_spec
from sandboxkernel.daemon.problems import convert
from sandboxkernel.daemon.runtime import Runtime
from sandboxkernel.daemon.spares import SparePool
from sandboxkernel.errors import KernelStartFailed
from sandboxkernel.images.store import StoredImage
from sandboxkernel.images.userlayers import UserLayers
from sandboxkernel.limits import Profile, Subject
from sandboxruntime.cgroup import Cgroup
from sandboxruntime.channel import close_fds
from sandboxruntime.errors import ContainerError
from sandboxruntime.spec import to_json
from sandboxruntime.verify import verify

__all__ = ["Key", "Zygote", "ZygoteStart", "read_ready"]

log = logging.getLogger(__name__)

READY_TIMEOUT_S = 120.0
READY_BYTES = 65536
INSIDE_ID = 1000


@dataclass(frozen=True, slots=True)
class Key:
    """Which kernels may come from one zygote: same image, same trust domain, same imports."""

    image_digest: str
    domain: str
    preload: tuple[str, ...]

    @classmethod
    def of(cls, image_digest: str, profile: Profile, subject: Subject) -> Key | None:
        """The key for a kernel; None when its profile has zygotes off."""
        if profile.zygote == "off":
            return None
        shared = cls.shared(image_digest, profile)
        if profile.zygote == "user":
            return replace(shared, domain=f"{shared.domain}/{subject.uid}")
        return shared

    @classmethod
    def shared(cls, image_digest: str, profile: Profile) -> Key:
        """The key of all users of a profile whose zygote is "profile"."""
        return cls(image_digest, profile.name, profile.preload)


@dataclass(slots=True)
class Zygote:
    """What the daemon knows of one. `live` kernels have come from it and run still."""

    key: Key
    lease: Lease
    uid: int
    spares: SparePool
    log: LogBuffer = field(default_factory=LogBuffer)
    ready: socket.socket | None = None
    process: Peer | None = None
    started: Started | None = None
    upper: str = ""
    born: float = field(default_factory=time.monotonic)
    forks: int = 0
    live: int = 0
    memory_when_ready: int = 0
    retired: bool = False


@dataclass(frozen=True, slots=True)
class ZygoteStart:
    """How zygotes are started.

    `gid` is the group of all of them: it lets them clone into cgroups (Cgroup.admit).
    """

    runtime: Runtime
    layers: UserLayers
    journal: LeaseJournal
    gid: int
    guest_source: str

    async def launch(self, zygote: Zygote, image: StoredImage, profile: Profile) -> None:
        """Start it and wait until it is ready to fork. Raises SandboxError or OSError."""
        assert zygote.lease.scratch is not None
        scratch = Path(zygote.lease.scratch)
        dirs = await asyncio.to_thread(self.layers.scratch, scratch, zygote.uid - INSIDE_ID)
        zygote.upper = str(dirs.upper)
        ground = ZygoteGround(
            container_id=zygote.lease.id,
            uid=zygote.uid,
            gid=self.gid,
            layers=tuple(str(path) for path in image.layer_dirs),
            upper=str(dirs.upper),
            work=str(dirs.work),
            cgroup=zygote.lease.cgroup,
            image_env=image.environment,
            image_labels=image.labels,
            profile=profile,
            package=self.runtime.package,
        )
        control, control_theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        zygote.ready, ready_theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        zygote.ready.setblocking(False)
        with control, control_theirs, ready_theirs:
            await self._create(zygote, ground, [control_theirs.fileno(), ready_theirs.fileno()])
            ready_theirs.close()
            await self._until_ready(zygote)
            await self.runtime.launcher.request(
                "adopt_zygote", [control.fileno()], container_id=zygote.lease.id
            )

    async def _create(self, zygote: Zygote, ground: ZygoteGround, sockets: list[int]) -> None:
        spec = plan_zygote_spec(ground)
        handover = HandOver()
        log_fd = zygote.log.attach()
        try:
            reply, fds = await self.runtime.launcher.request(
                "create", [handover.theirs.fileno(), log_fd], spec=to_json(spec)
            )
            close_fds(fds)
            handover.theirs.close()
            cgroup = Cgroup.attach(self.runtime.layout, spec.cgroups_path)
            filters = self.runtime.host_filters + 1
            zygote.process, _, _ = await handover.run(
                lambda facts: verify(
                    facts,
                    spec,
                    cgroup,
                    self.runtime.host_namespaces,
                    filters=filters,
                    root=reply["root"],
                ),
                plan_zygote_payload(ground, self.guest_source),
                sockets,
            )
            zygote.started = Started(
                spec=spec, init_pid=reply["pid"], pid=zygote.process.pid,
                ticks=zygote.process.ticks(), filters=filters,
            )  # fmt: skip
            self.journal.write(zygote.lease, started=zygote.started)
        except ContainerError as exc:
            raise convert(exc) from exc
        finally:
            os.close(log_fd)
            handover.close()

    async def _until_ready(self, zygote: Zygote) -> None:
        assert zygote.ready is not None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                data = await loop.sock_recv(zygote.ready, READY_BYTES)
        except TimeoutError:
            raise KernelStartFailed(
                f"the zygote was not ready within {READY_TIMEOUT_S:g} s", step="hand_over"
            ) from None
        unfit = read_ready(data)
        if unfit is not None:
            zygote.log.drain()
            log.debug("zygote's output: %s", zygote.log.tail(4000).decode(errors="replace"))
            raise KernelStartFailed(f"the zygote is unfit: {unfit}", step="hand_over")


class _Word(Struct, frozen=True):
    ready: int | None = None
    unfit: str | None = None


def read_ready(data: bytes) -> str | None:
    """Why a zygote cannot be used, None if it can. Pure.

    Whatever it has imported by then may have written this, so it may be anything.
    """
    if not data:
        return "it ended"
    try:
        word = msgspec.json.decode(data, type=_Word)
    except (ValueError, RecursionError):  # MsgspecError is a ValueError
        return f"it says {data[:80]!r}"
    if word.unfit is None and word.ready is None:
        return f"it says {data[:80]!r}"
    return word.unfit[:1000] if word.unfit is not None else None
