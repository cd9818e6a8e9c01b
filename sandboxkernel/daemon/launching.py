"""One attempt to start a program: create, verify from outside, hand over. asyncio."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sandboxkernel.daemon.handover import HandOver, Process
from sandboxkernel.daemon.problems import convert
from sandboxkernel.daemon.runtime import Runtime
from sandboxruntime.cgroup import Cgroup
from sandboxruntime.errors import ContainerError
from sandboxruntime.handover import Payload
from sandboxruntime.spec import Spec, to_json
from sandboxruntime.verify import Facts, verify, verify_alone, verify_init

__all__ = ["Launched", "launch"]


@dataclass(frozen=True, slots=True)
class Launched:
    """A program that runs. `executed` is why a fork executed an interpreter all the same, or ""."""

    process: Process
    executed: str


async def launch(
    runtime: Runtime,
    spec: Spec,
    payload: Payload,
    *,
    log_fd: int,
    fds: list[int],
    zygote: str | None,
    spare: str | None,
    on_created: Callable[[dict[str, Any]], None],
) -> Launched:
    """Make a container and hand over to its program, which gets `fds`. Borrows descriptors.

    `on_created` is called with the launcher's reply as soon as there is a pid 1. Raises
    SandboxError; the container may be there then, and the caller deletes it.
    """
    with contextlib.ExitStack() as stack:
        handover = HandOver()
        stack.callback(handover.close)
        try:
            handover.begin()
            reply, (init_pidfd,) = await runtime.launcher.request(
                "create", [handover.theirs.fileno(), log_fd], spec=to_json(spec),
                zygote=zygote, spare=spare,
            )  # fmt: skip
            stack.callback(os.close, init_pidfd)
            on_created(reply)
            handover.theirs.close()
            # A zygote's child has the zygote's too, a container of another runtime the latter's.
            alone = reply["path"] == "cold" and spec.executor is None
            filters = runtime.host_filters + (1 if alone else 2)
            cgroup = Cgroup.attach(runtime.layout, spec.cgroups_path)

            def judge(facts: Facts) -> None:
                verify(
                    facts, spec, cgroup, runtime.host_namespaces,
                    filters=filters, root=reply["root"],
                )  # fmt: skip
                verify_init(reply["pid"], init_pidfd, spec, filters=filters)
                verify_alone(cgroup, (reply["pid"], facts.pid))

            peer, facts, result = await handover.run(judge, payload, fds)
            return Launched(Process(peer, cgroup, facts, filters, peer.ticks()), result.executed)
        except ContainerError as exc:
            raise convert(exc) from exc
