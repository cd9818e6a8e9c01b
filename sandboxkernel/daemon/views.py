"""What the API says of a sandbox."""

from __future__ import annotations

from datetime import UTC, datetime

from sandboxkernel.daemon.handover import Process
from sandboxkernel.daemon.in_force import read_in_force
from sandboxkernel.daemon.problems import told_if_ended
from sandboxkernel.daemon.sandbox import Sandbox
from sandboxkernel.errors import KernelNotRunning
from sandboxkernel.models import (
    Confinement,
    ConnectionInfo,
    Kernel,
    KernelConnection,
    Removal,
    Stats,
)
from sandboxruntime import landlock

__all__ = ["kernel_connection", "kernel_model", "kernel_stats"]


def kernel_model(
    sandbox: Sandbox, *, removal: Removal | None = None, detail: bool = False
) -> Kernel:
    """What the API says of this sandbox. `detail` adds what outside verification read."""
    process = sandbox.process
    subject = sandbox.ground.subject
    return Kernel(
        kernel_id=sandbox.request.kernel_id,
        id=sandbox.id,
        kernel_name=sandbox.request.kernel_name,
        owner_uid=subject.uid,
        owner_name=subject.name,
        profile=sandbox.ground.profile.name,
        image=sandbox.image,
        image_digest=sandbox.image_digest,
        state=sandbox.state,
        generation=sandbox.generation,
        pid=process.peer.pid if process else None,
        created_at=sandbox.created_at,
        started_at=sandbox.started_at,
        limits=sandbox.limits,
        cwd=sandbox.request.cwd,
        ephemeral=sandbox.lease.scratch is not None,
        attached=sandbox.watchers > 0,
        connection=ConnectionInfo(ip=sandbox.sockets.prefix) if sandbox.sockets else None,
        exit=sandbox.exit,
        confinement=_confinement(process) if detail and process else None,
        removal=removal,
        in_force=read_in_force(sandbox) if detail else None,
        start_path=sandbox.start_path,
        cold_reason=sandbox.cold_reason,
        executor=sandbox.ground.profile.executor,
        timings_ms=sandbox.timings,
    )


def kernel_stats(sandbox: Sandbox) -> Stats:
    """What the sandbox uses now. Raises KernelNotRunning, also when it is just ending."""
    with told_if_ended(sandbox.request.kernel_id):
        usage = sandbox.cgroup().usage()
    return Stats(
        kernel_id=sandbox.request.kernel_id,
        time=datetime.now(UTC),
        memory_bytes=usage.memory_bytes,
        memory_peak_bytes=usage.memory_peak_bytes,
        memory_limit_bytes=sandbox.limits.memory_bytes,
        cpu_usage_s=usage.cpu_usage_us / 1e6,
        cpu_throttled_s=usage.cpu_throttled_us / 1e6,
        cpus=sandbox.limits.cpus,
        pids=usage.pids,
        pids_limit=sandbox.limits.pids,
        io_read_bytes=usage.io_read_bytes,
        io_write_bytes=usage.io_write_bytes,
        oom_kills=usage.oom_kills,
    )


def kernel_connection(sandbox: Sandbox) -> KernelConnection:
    """What it takes to attach to a kernel. Raises KernelNotRunning for any other program."""
    request, sockets = sandbox.request, sandbox.sockets
    if sockets is None:
        raise KernelNotRunning(f"sandbox {sandbox.id} runs a program, not a kernel")
    return KernelConnection(
        connection=ConnectionInfo(ip=sockets.prefix),
        kernel_name=request.kernel_name,
        key=request.key,
        signature_scheme=request.signature_scheme,
        curve_publickey=request.curve_publickey,
        curve_secretkey=request.curve_secretkey,
        session_name=request.env.get("JPY_SESSION_NAME"),
    )


def _confinement(process: Process) -> Confinement:
    facts = process.facts
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
            for parts in (line.split(":", 2) for line in facts.cgroup.split("\n") if line)
        },
        mounts=[line.split(" ")[4] for line in facts.mountinfo.split("\n") if line],
        device_list=process.cgroup.device_list,
    )
