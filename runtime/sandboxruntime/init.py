"""Set-up inside the container, pid 1, and the kernel's process up to its exec.

Theory of operation. clone3 makes pid 1 in new namespaces; it is a fork of the launcher.
`confine()` walks CHILD_STEPS, each a function of the context, and ends with every capability
gone and the seccomp filter on. Only then does pid 1 fork the process that will become the
kernel. That process greets the daemon over the hand-over socket (the daemon learns its pid and
pidfd from the message's own credentials), is verified from outside, receives environment, key
and sockets, and execs the image's program. Pid 1 never sees a key; it reaps, forwards signals
and reports the exit. Any failure is written as JSON to the status pipe, followed by _exit.

Pid 1 outlives launcher and daemon, and keeps what the next ones need: the read ends of its exit
pipe and of the log (readopt.py finds them). Once its program has ended it stays, with the exit
status in the pipe, until somebody who has read that kills it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NoReturn

from sandboxruntime import capabilities, landlock, rlimits, seccomp, syscalls
from sandboxruntime.handover import become_program
from sandboxruntime.mounts import (
    MountOp,
    Moved,
    apply_mounts,
    plan_masks,
    plan_mounts,
    plan_proc,
)
from sandboxruntime.namespaces import bring_up_loopback, pivot_to
from sandboxruntime.spec import Spec
from sandboxruntime.steps import Step
from sandboxruntime.syscalls import CloneFlag, MountFlag

__all__ = [
    "CREATE_STEPS",
    "JOIN_STEPS",
    "Ahead",
    "Context",
    "be_init",
    "begin_ahead",
    "begin_session",
    "close_all_but",
    "confine",
    "context_from",
    "default_signals",
    "join_keyring",
    "orders_fds",
    "report_failure",
    "run_init",
]

PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38
REPORT_AGAIN_S = 0.1
FIONREAD = 0x541B  # asm-generic/ioctls.h: bytes in a pipe
STATUS_BYTES_MAX = 4000  # one write to a pipe of up to PIPE_BUF bytes is atomic
_FORWARDED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGCONT,
)


@dataclass(frozen=True, slots=True)
class Ahead:
    """What pid 1 of a zygote's child has mounted before its orders: /proc, with its masks."""

    proc_fd: int
    operations: tuple[MountOp, ...]

    def fits(self, spec: Spec) -> bool:
        """Whether that spec wants all of it. Pure."""
        return {*self.operations} <= {*plan_mounts(spec), *plan_masks(spec)}


@dataclass(slots=True)
class Context:
    """What set-up needs in the child. Descriptors are inherited from the launcher.

    `status_fd` takes a failure or, at the end, the timings; `handover_fd` is the stream socket
    to the daemon; `exit_fd` takes the kernel's wait status; `kept_fds` are the read ends of that
    pipe and of the log; `attach_fd` is where the root goes.
    """

    spec: Spec
    status_fd: int
    handover_fd: int
    exit_fd: int
    log_fd: int
    cgroup_fds: list[int]
    seccomp_program: bytes
    attach_fd: int = -1
    root_fd: int = -1
    kept_fds: list[int] = field(default_factory=list)
    bind_fds: list[int] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    fail_at: Step | None = None
    ahead: Ahead | None = None


def orders_fds(context: Context) -> list[int]:
    """The descriptors of a context in the order in which context_from() takes them. Pure."""
    return [
        context.status_fd, context.handover_fd, context.exit_fd, context.log_fd, context.root_fd,
        *context.kept_fds, *context.bind_fds,
    ]  # fmt: skip


def context_from(spec: Spec, seccomp_program: bytes, attach_fd: int, fds: list[int]) -> Context:
    """A context made of descriptors that came over a socket. Pure."""
    status_fd, handover_fd, exit_fd, log_fd, root_fd, kept_exit, kept_log, *bind_fds = fds
    return Context(
        spec=spec,
        status_fd=status_fd,
        handover_fd=handover_fd,
        exit_fd=exit_fd,
        log_fd=log_fd,
        cgroup_fds=[],  # a zygote's child enters its cgroup before it gets its orders
        seccomp_program=seccomp_program,
        attach_fd=attach_fd,
        root_fd=root_fd,
        kept_fds=[kept_exit, kept_log],
        bind_fds=bind_fds,
    )


def _enter_cgroup(context: Context) -> None:
    for fd in context.cgroup_fds:
        # cgroups check the rights of whoever opened the file, which was root.
        os.write(fd, b"0")


def _cgroup_namespace(context: Context) -> None:
    if context.spec.zygote:
        return  # from within one, Linux lets no child be cloned into a cgroup outside of it
    syscalls.unshare(CloneFlag.NEWCGROUP)


def _session(context: Context) -> None:
    del context
    join_keyring()
    begin_session()


def join_keyring() -> None:
    """Leave the session keyring of whoever made this process (session-keyring(7))."""
    try:
        syscalls.keyctl_join_session_keyring()
    except OSError as exc:
        if exc.errno == errno.EDQUOT:
            exc.add_note("sysctl kernel.keys.maxkeys limits the keyrings of one host uid")
        if exc.errno != errno.ENOSYS:  # Linux without CONFIG_KEYS has no keyring to share
            raise


def begin_session() -> None:
    """A session of its own, and nothing inherited of masks and handlers."""
    os.setsid()
    default_signals()


def default_signals() -> None:
    """Nothing inherited of the mask of files' modes and of signals' handlers."""
    os.umask(0o022)
    for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(signum, signal.SIG_DFL)


def begin_ahead() -> Ahead:
    """In pid 1 of a zygote's child, before its orders: all that is the same in every container.

    The new /proc covers the zygote's until it is moved to where it belongs. Raises OSError.
    """
    begin_session()
    capabilities.drop_bounding()  # what is held stays until the end of set-up
    bring_up_loopback()
    _make_private()
    operations = plan_proc()
    root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    apply_mounts(operations, root_fd, [])
    os.close(root_fd)
    proc_fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return Ahead(proc_fd, tuple(operations))


def _make_private() -> None:
    syscalls.mount("none", "/", None, MountFlag.REC | MountFlag.PRIVATE)


def _mounts(context: Context) -> None:
    _make_private()
    move = syscalls.MoveMountFlag.F_EMPTY_PATH | syscalls.MoveMountFlag.T_EMPTY_PATH
    syscalls.move_mount(context.root_fd, "", context.attach_fd, "", move)
    if context.ahead is not None:
        apply_mounts([Moved(context.ahead.proc_fd, "/proc")], context.root_fd, [])
    apply_mounts(_left(context, plan_mounts(context.spec)), context.root_fd, context.bind_fds)


def _masks(context: Context) -> None:
    apply_mounts(_left(context, plan_masks(context.spec)), context.root_fd, [])


def _left(context: Context, operations: list[MountOp]) -> list[MountOp]:
    """What was not made ahead. Pure."""
    made = context.ahead.operations if context.ahead is not None else ()
    return [operation for operation in operations if operation not in made]


def _pivot(context: Context) -> None:
    pivot_to(context.root_fd)


def _hostname(context: Context) -> None:
    socket.sethostname(context.spec.hostname)


def _loopback(context: Context) -> None:
    del context
    bring_up_loopback()


def _rlimits(context: Context) -> None:
    rlimits.apply({**rlimits.DEFAULTS, **context.spec.process.rlimits})


def _close_fds(context: Context) -> None:
    null_fd = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null_fd, 0)
    os.dup2(context.log_fd, 1)
    os.dup2(context.log_fd, 2)
    sockets = (context.status_fd, context.handover_fd, context.exit_fd)
    close_all_but((0, 1, 2, *sockets, *context.kept_fds))


def close_all_but(keep: Iterable[int]) -> None:
    """Close every descriptor but these."""
    first = 0
    for fd in sorted(set(keep)):
        if fd > first:
            syscalls.close_range(first, fd - 1)
        first = fd + 1
    syscalls.close_range(first)


def _credentials(context: Context) -> None:
    # setresuid(2) drops CAP_SETGID, so the gid must already be final; there are no
    # supplementary groups: the launcher dropped them and setgroups is denied.
    capabilities.drop_bounding()
    capabilities.lock_securebits()
    process = context.spec.process
    os.setresgid(process.gid, process.gid, process.gid)
    os.setresuid(process.uid, process.uid, process.uid)
    if os.getgroups():
        raise PermissionError(errno.EPERM, f"supplementary groups {os.getgroups()} are left")


def _capabilities(context: Context) -> None:
    del context
    capabilities.clear()


def _no_new_privs(context: Context) -> None:
    del context
    # A change of credentials resets this to fs.suid_dumpable; it must stay off until exec, so
    # that nothing inside can look into a process that still runs the launcher's program.
    syscalls.prctl(PR_SET_DUMPABLE, 0)
    syscalls.prctl(PR_SET_NO_NEW_PRIVS, 1)


def _landlock(context: Context) -> None:
    if context.spec.zygote:
        return
    if not landlock.restrict(writable=context.spec.writable):
        raise OSError(errno.ENOSYS, "this Linux has no Landlock (CONFIG_SECURITY_LANDLOCK, lsm=)")


def _seccomp(context: Context) -> None:
    seccomp.install(context.seccomp_program)


CREATE_STEPS: dict[Step, Callable[[Context], None]] = {
    Step.ENTER_CGROUP: _enter_cgroup,
    Step.CGROUP_NAMESPACE: _cgroup_namespace,
    Step.SESSION: _session,
    Step.MOUNTS: _mounts,
    Step.MASKS: _masks,
    Step.PIVOT: _pivot,
    Step.HOSTNAME: _hostname,
    Step.LOOPBACK: _loopback,
    Step.RLIMITS: _rlimits,
    Step.CLOSE_FDS: _close_fds,
    Step.CREDENTIALS: _credentials,
    Step.CAPABILITIES: _capabilities,
    Step.NO_NEW_PRIVS: _no_new_privs,
    Step.LANDLOCK: _landlock,
    Step.SECCOMP: _seccomp,
}
# A process that joins a running container (exec) finds the namespaces and mounts made.
JOIN_STEPS: dict[Step, Callable[[Context], None]] = {
    step: function
    for step, function in CREATE_STEPS.items()
    if step
    not in (
        Step.ENTER_CGROUP,
        Step.CGROUP_NAMESPACE,
        Step.MOUNTS,
        Step.MASKS,
        Step.PIVOT,
        Step.HOSTNAME,
        Step.LOOPBACK,
    )
}


def confine(context: Context, steps: dict[Step, Callable[[Context], None]]) -> None:
    """Walk the steps; on failure report and end the process."""
    for step, function in steps.items():
        started = time.monotonic()
        try:
            if context.fail_at is step:
                raise OSError(errno.EIO, f"injected fault at {step}")
            function(context)
        except BaseException as exc:  # this is the process's only reporter
            report_failure(context.status_fd, step, exc)
        context.timings[step] = (time.monotonic() - started) * 1000


def report_failure(status_fd: int, step: Step, exc: BaseException) -> NoReturn:
    """Write {step, errno, message} to the status pipe and end the process at once."""
    code = exc.errno if isinstance(exc, OSError) and exc.errno else 0
    notes = "; ".join(getattr(exc, "__notes__", []))
    message = f"{exc} ({notes})" if notes else str(exc)
    record = {"step": step, "errno": code, "message": message or type(exc).__name__}
    try:
        os.write(status_fd, json.dumps(record).encode()[:STATUS_BYTES_MAX] + b"\n")
    finally:
        # A forked copy of the launcher must never get back into the launcher's loop.
        os._exit(70)  # EX_SOFTWARE


def run_init(context: Context) -> NoReturn:
    """Be pid 1: start the process, reap, forward signals, report its exit, end."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    child = os.fork()
    if child == 0:
        become_program(context.handover_fd, context.exit_fd, context.status_fd, *context.kept_fds)
    be_init(context, child)


def be_init(context: Context, child: int) -> NoReturn:
    """Pid 1 once its child is there: report the timings, let go of everything, look after it."""
    os.write(context.status_fd, json.dumps({"timings": context.timings}).encode() + b"\n")
    # From here on pid 1 holds nothing but the exit pipe, and what it keeps for others.
    close_all_but((0, 1, 2, context.exit_fd, *context.kept_fds))
    null_fd = os.open("/dev/null", os.O_RDWR)
    for fd in (1, 2):  # the log must reach its end when the kernel's processes are gone
        os.dup2(null_fd, fd)
    os.close(null_fd)
    _reap_and_forward(context, child)


def _reap_and_forward(context: Context, child: int) -> NoReturn:
    waited = {signal.SIGCHLD, *_FORWARDED}
    ended: int | None = None
    while True:
        received = signal.sigwait(waited)
        if received != signal.SIGCHLD:
            _forward(child, received)
            continue
        status, alone = _reap(child)
        ended = status if status is not None else ended
        # A zygote's namespace has the containers in it that it forked: they may go on.
        if ended is not None and (alone or not context.spec.zygote):
            _report_exit(context, ended)


def _report_exit(context: Context, status: int) -> NoReturn:
    """End what is left in the namespace, tell the status, and wait to be killed.

    A launcher may take the status and be killed before it has passed it on: the pipe is filled
    again for the next one.
    """
    with contextlib.suppress(ProcessLookupError):  # there is nobody else
        os.kill(-1, signal.SIGKILL)  # of this namespace, all but pid 1 (kill(2))
    exit_read, empty = context.kept_fds[0], bytes(4)
    while True:
        if fcntl.ioctl(exit_read, FIONREAD, empty) == empty:
            os.write(context.exit_fd, struct.pack("i", status))
        _reap(-1)
        time.sleep(REPORT_AGAIN_S)


def _reap(child: int) -> tuple[int | None, bool]:
    """Reap all that has ended; the wait status of `child` if among them; whether none is left."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found, True
        if pid == 0:
            return found, False
        if pid == child:
            found = status


def _forward(child: int, signum: int) -> None:
    try:
        os.killpg(child, signum)
    except ProcessLookupError:
        os.kill(child, signum)  # before its setsid the group does not exist
