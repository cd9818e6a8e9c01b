"""Create, join, reap and delete containers: the launcher's side, one function per OCI verb."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from sandboxruntime import capabilities, oci, seccomp, syscalls
from sandboxruntime.cgroup import Cgroup, Layout
from sandboxruntime.errors import ContainerError
from sandboxruntime.handover import become_program
from sandboxruntime.init import (
    CREATE_STEPS,
    JOIN_STEPS,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    Context,
    close_all_but,
    confine,
    orders_fds,
    report_failure,
    run_init,
)
from sandboxruntime.namespaces import NAMESPACES, write_id_maps
from sandboxruntime.rootfs import MountFactory
from sandboxruntime.spec import Spec
from sandboxruntime.status import Waiting, hear_status, setup_error
from sandboxruntime.steps import Step
from sandboxruntime.syscalls import CloneFlag
from sandboxruntime.validate import validate
from sandboxruntime.zygote import Spare, Zygote, end

__all__ = ["Container", "Host", "Joined", "create", "delete", "join", "read_exit", "remove_cgroup"]

SETUP_DEADLINE_S = 10.0  # a step that takes longer is stuck: on NFS, on a frozen cgroup
DELETE_S, AGAIN_S = 10.0, 0.2  # for processes to end; everybody else waits meanwhile
# Pid 1 is a program that another runtime has executed: its interpreter is read from the disk.
EXECUTED_DEADLINE_S = 20.0
FORK_DEADLINE_S = 4.0  # a child of a zygote's that takes longer: a cold start is sooner there


@dataclass(slots=True)
class Host:
    """What the launcher holds for all containers. `fail_at` is the tests' fault injection.

    `oci_state` is where other runtimes keep their records.
    """

    layout: Layout
    mounts: MountFactory
    oci_state: str
    fail_at: Step | None = None
    programs: dict[str, bytes] = field(default_factory=dict)

    def seccomp_program(self, profile: str) -> bytes:
        """The compiled filter of a profile, compiled once."""
        if profile not in self.programs:
            self.programs[profile] = seccomp.compile_filter(
                seccomp.load_profile(profile), syscalls.machine()
            )
        return self.programs[profile]


@dataclass(slots=True)
class Container:
    """A created container: pid 1 is confined and its child waits for the hand-over."""

    spec: Spec
    pid: int
    pidfd: int
    exit_fd: int
    oom_fd: int
    cgroup: Cgroup
    root: str = ""  # the device of its root file system, of one that was made here
    timings: dict[str, float] = field(default_factory=dict)
    exited: bool = False  # its program; pid 1 is there until the container is deleted
    out_of_memory: bool = False
    delete_failed: bool = False


@dataclass(slots=True)
class Joined:
    """A process that was started in a running container by exec."""

    container_id: str
    pidfd: int
    exit_fd: int


class _Timer:
    """Names the step that runs, times it, and turns its OSError into a SetupError."""

    def __init__(self, fail_at: Step | None) -> None:
        self.timings: dict[str, float] = {}
        self._fail_at = fail_at

    @contextlib.contextmanager
    def step(self, step: Step) -> Iterator[None]:
        started = time.monotonic()
        try:
            if self._fail_at is step:
                raise OSError(5, f"injected fault at {step}")
            yield
        except ContainerError:
            raise
        except OSError as exc:
            raise setup_error(step, exc.errno or 0, str(exc)) from exc
        self.timings[step] = (time.monotonic() - started) * 1000


class _Pipe:
    """A pipe whose ends are closed exactly once, early or with the stack."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.read, self.write = os.pipe2(os.O_CLOEXEC)
        stack.callback(self.close)

    def close_write(self) -> None:
        """Close the write end: the reader sees its end."""
        if self.write >= 0:
            os.close(self.write)
            self.write = -1

    def take_read(self) -> int:
        """Pass the read end on to another owner."""
        fd, self.read = self.read, -1
        return fd

    def close(self) -> None:
        """Close what is still open."""
        self.close_write()
        if self.read >= 0:
            os.close(self.take_read())


def create(
    host: Host, spec: Spec, *, handover_fd: int, log_fd: int, source: Zygote | Spare | None = None
) -> Waiting[Container]:
    """Make a container up to the point where its process waits for the hand-over.

    Its pid 1 is a fork of this process, of a zygote's, or a spare, which is used up. Borrows both
    descriptors until it first waits: for that process, whose cgroup may give it little to run on.
    `log_fd` is the write end of a pipe. On failure, or closed, it leaves nothing behind; raises
    ContainerError.
    """
    timer = _Timer(host.fail_at)
    with contextlib.ExitStack() as undo, contextlib.ExitStack() as temporary:
        if isinstance(source, Spare):
            undo.callback(source.discard)
        with timer.step(Step.VALIDATE):
            validate(spec)
            program = host.seccomp_program(spec.seccomp_profile)
        with timer.step(Step.CGROUP):
            cgroup = _cgroup_for(host, spec, source, undo)
            birth = source.ask(cgroup) if isinstance(source, Zygote) else None
            if birth is not None:
                temporary.callback(birth.close)
        with timer.step(Step.ROOTFS):
            root_fd = host.mounts.open_rootfs(spec)
            temporary.callback(os.close, root_fd)
            undo.callback(host.mounts.release_rootfs, spec)
        with timer.step(Step.BINDS):
            bind_fds = []
            for bind in spec.binds:
                bind_fds.append(host.mounts.open_bind(bind, spec))
                temporary.callback(os.close, bind_fds[-1])
        status, ending = _Pipe(temporary), _Pipe(temporary)
        kept_log = os.open(f"/proc/self/fd/{log_fd}", os.O_RDONLY | os.O_NONBLOCK)
        temporary.callback(os.close, kept_log)
        context = Context(
            spec=spec,
            status_fd=status.write,
            handover_fd=handover_fd,
            exit_fd=ending.write,
            log_fd=log_fd,
            cgroup_fds=[],
            seccomp_program=program,
            kept_fds=[ending.read, kept_log],
            root_fd=root_fd,
            bind_fds=bind_fds,
            fail_at=host.fail_at,
        )
        if spec.executor is not None:
            deadline_s = EXECUTED_DEADLINE_S
            pid, pidfd = _have_made(host, context, cgroup, timer, undo)
        elif source is None:
            deadline_s = SETUP_DEADLINE_S
            pid, pidfd = _clone(host, context, cgroup, timer, undo)
        else:
            deadline_s = FORK_DEADLINE_S
            pid, pidfd = _order(source, birth, context, timer, undo)
        status.close_write()
        ending.close_write()
        undo.callback(cgroup.kill)  # whatever its quota of processor time
        timings = yield from hear_status(status.read, deadline_s)
        oom_fd = cgroup.oom_notify_fd()
        undo.pop_all()
        return Container(
            spec=spec,
            pid=pid,
            pidfd=pidfd,
            exit_fd=ending.take_read(),
            oom_fd=oom_fd,
            cgroup=cgroup,
            root=device_of(root_fd),
            timings={**timer.timings, **timings},
        )


def device_of(fd: int) -> str:
    """The device of a mount's file system as proc_pid_mountinfo(5) shows it."""
    device = os.fstat(fd).st_dev
    return f"{os.major(device)}:{os.minor(device)}"


def _cgroup_for(
    host: Host, spec: Spec, source: Zygote | Spare | None, undo: contextlib.ExitStack
) -> Cgroup:
    """A new cgroup with the spec's limits; a spare is in its own since its birth."""
    if isinstance(source, Spare):
        source.take_limits(spec)
        return source.cgroup
    # The pid 1 of a zygote outlives it: every kernel that it forked is in its PID namespace.
    cgroup = Cgroup.create(
        host.layout, spec.cgroups_path, spec.limits, kill_as_unit=not spec.zygote,
        guard_devices=True,
    )  # fmt: skip
    undo.callback(remove_cgroup, cgroup)
    return cgroup


def _clone(
    host: Host, context: Context, cgroup: Cgroup, timer: _Timer, undo: contextlib.ExitStack
) -> tuple[int, int]:
    """Pid 1 as a fork of this process; its pid and pidfd."""
    spec = context.spec
    with contextlib.ExitStack() as temporary:
        with timer.step(Step.CLONE):
            go = _Pipe(temporary)
            context.cgroup_fds = cgroup.entry_fds()
            cgroup_fd = _open_cgroup(cgroup, context.cgroup_fds, temporary)
            namespaces = NAMESPACES & ~CloneFlag.NEWUSER if spec.zygote else NAMESPACES
            pid, pidfd = syscalls.clone3(namespaces, cgroup_fd=cgroup_fd)
            if pid == 0:
                _child(context, go, host.mounts.attach_point)
            undo.callback(end, pidfd)
        with timer.step(Step.IDMAP):
            if not spec.zygote:
                write_id_maps(pid, spec.uid_mappings, spec.gid_mappings)
            os.write(go.write, b"g")
    return pid, pidfd


def _have_made(
    host: Host, context: Context, cgroup: Cgroup, timer: _Timer, undo: contextlib.ExitStack
) -> tuple[int, int]:
    """Pid 1 in a container that another runtime makes; its pid and pidfd."""
    with timer.step(Step.CLONE):
        undo.callback(oci.forget, host.oci_state, context.spec.container_id, cgroup)
        pid, pidfd = oci.run(host.mounts, host.oci_state, context, cgroup)
        undo.callback(end, pidfd)
    return pid, pidfd


def _order(
    source: Zygote | Spare, birth: socket.socket | None, context: Context, timer: _Timer,
    undo: contextlib.ExitStack,
) -> tuple[int, int]:  # fmt: skip
    """Pid 1 as a fork of a zygote's, now or long ago, which gets its orders; pid and pidfd."""
    with timer.step(Step.CLONE):
        if isinstance(source, Spare):
            child = source.child
        else:
            assert birth is not None
            child = source.receive(birth)
            undo.callback(end, child.pidfd)
    with timer.step(Step.IDMAP):
        write_id_maps(child.pid, context.spec.uid_mappings, context.spec.gid_mappings)
        child.confine(context.spec, context.seccomp_program, orders_fds(context), context.fail_at)
        child.sock.close()
    return child.pid, child.pidfd


def _open_cgroup(cgroup: Cgroup, entry_fds: list[int], stack: contextlib.ExitStack) -> int:
    """The v2 directory for clone3; it and `entry_fds` are closed with the stack."""
    for fd in entry_fds:
        stack.callback(os.close, fd)
    directory_fd = cgroup.directory_fd()
    if directory_fd >= 0:
        stack.callback(os.close, directory_fd)
    return directory_fd


def _child(context: Context, go: _Pipe, attach_point: str) -> NoReturn:
    """The first instructions of pid 1, until its ids are mapped."""
    try:
        syscalls.prctl(PR_SET_DUMPABLE, 0)
        # Opened as host root, the owner of the staging directory; soon we are somebody else.
        context.attach_fd = os.open(attach_point, os.O_PATH | os.O_DIRECTORY)
        go.close_write()
        if os.read(go.read, 1) != b"g":
            os._exit(70)  # the launcher failed at the map and has said so
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    except BaseException as exc:
        report_failure(context.status_fd, Step.IDMAP, exc)
    confine(context, CREATE_STEPS)
    try:
        run_init(context)
    except BaseException as exc:
        report_failure(context.status_fd, Step.HAND_OVER, exc)


def join(
    host: Host, container: Container, *, handover_fd: int, output_fd: int,
    reap: Callable[[int], None],
) -> Waiting[Joined]:  # fmt: skip
    """Start one more process in a running container, as confined as the first (OCI exec).

    Nothing of the image runs before every confinement is on. Borrows both descriptors until it
    first waits. `reap` takes the pidfd of one that has failed, and collects it when it has ended:
    in a container that is frozen or has little to run on, that may be late.
    """
    with contextlib.ExitStack() as temporary:
        cgroup_fds = container.cgroup.entry_fds()
        cgroup_fd = _open_cgroup(container.cgroup, cgroup_fds, temporary)
        status, ending = (_Pipe(temporary) for _ in range(2))
        context = Context(
            spec=container.spec,
            status_fd=status.write,
            handover_fd=handover_fd,
            exit_fd=ending.write,
            log_fd=output_fd,
            cgroup_fds=cgroup_fds,
            seccomp_program=host.seccomp_program(container.spec.seccomp_profile),
        )
        pid, pidfd = syscalls.clone3(CloneFlag(0), cgroup_fd=cgroup_fd)
        if pid == 0:
            _joining_child(context, container.pidfd)
        status.close_write()
        ending.close_write()
        try:
            yield from hear_status(status.read, SETUP_DEADLINE_S)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            reap(pidfd)
            raise
        return Joined(container.spec.container_id, pidfd, ending.take_read())


def _joining_child(context: Context, container_pidfd: int) -> NoReturn:
    try:
        syscalls.prctl(PR_SET_DUMPABLE, 0)
        for fd in context.cgroup_fds:
            os.write(fd, b"0")
        syscalls.setns(container_pidfd, NAMESPACES | CloneFlag.NEWCGROUP)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        child = os.fork()  # setns to a PID namespace takes effect for children
        if child == 0:
            confine(context, JOIN_STEPS)
            os.write(context.status_fd, json.dumps({"timings": context.timings}).encode() + b"\n")
            become_program(context.handover_fd, context.exit_fd, context.status_fd)
    except BaseException as exc:
        report_failure(context.status_fd, Step.CLONE, exc)
    _wait_for_joined(context, child)


def _wait_for_joined(context: Context, child: int) -> NoReturn:
    """Outside the PID namespace: pass the wait status on. Nothing of the image runs here."""
    try:
        # Not the launcher's sockets, above all: whoever is at their other end must see it end.
        close_all_but((context.exit_fd, context.status_fd))
        # Without the check of capabilities.drop_all(): our /proc/self is in another namespace.
        capabilities.drop_bounding()
        syscalls.prctl(PR_SET_NO_NEW_PRIVS, 1)
        syscalls.capset(0, 0, 0)  # last: the child, which may be another user by now, can be killed
    except BaseException as exc:
        try:
            os.kill(child, signal.SIGKILL)  # nobody would wait for it
            os.waitpid(child, 0)  # or the host's init has to
        finally:
            report_failure(context.status_fd, Step.CLONE, exc)
    os.close(context.status_fd)
    try:
        _, status = os.waitpid(child, 0)
        os.write(context.exit_fd, struct.pack("i", status))
    finally:
        os._exit(0)


def read_exit(exit_fd: int) -> int | None:
    """The wait status that pid 1 left in its pipe; None when it was killed before it could."""
    data = os.read(exit_fd, 4)
    return struct.unpack("i", data)[0] if len(data) == 4 else None


def delete(host: Host, container: Container) -> None:
    """Kill what is left and give everything back. One that has failed can be repeated.

    The first time waits for what is about to end; who asks again asks rather later than longer.
    """
    wait_s = AGAIN_S if container.delete_failed else DELETE_S
    container.delete_failed = True
    container.cgroup.kill(wait_s)
    if container.pidfd >= 0:
        end(container.pidfd)
        os.close(container.exit_fd)
        container.pidfd = container.exit_fd = -1
    if container.spec.executor is not None:
        oci.forget(host.oci_state, container.spec.container_id, container.cgroup)
    container.cgroup.remove(wait_s)
    host.mounts.release_rootfs(container.spec)


def remove_cgroup(cgroup: Cgroup) -> None:
    """End what is in a cgroup and remove it. Idempotent."""
    cgroup.kill()
    cgroup.remove()
