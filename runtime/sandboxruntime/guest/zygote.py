"""Runs inside a zygote: prepares ipykernel, then forks a child for every request.

Executed as a file by the image's Python. Arguments: the control socket's descriptor, the ready
socket's, the directory of the sandboxruntime package, then the modules to import ahead. The
process holds no secret and gets none: what a kernel needs, the child receives after it has been
confined and verified. One thread, or it refuses to serve.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

Taken = tuple[socket.socket, list[str], dict[str, str]]  # what take_over() returns
Populate = Callable[[], None]


class Unfit(Exception):
    """This image's zygote must not fork: the reason is for the daemon's log and `inspect`."""


def main() -> None:
    """Prepare, report, serve; in a child, become the kernel."""
    control_fd, ready_fd, package_root, *preload = sys.argv[1:]
    sys.path[0] = package_root  # where the folder of this file was
    control = socket.socket(fileno=int(control_fd))
    ready = socket.socket(fileno=int(ready_fd))
    gc.disable()
    try:
        # Everything that a child needs is imported here, once, and before sys.path is the user's.
        from sandboxruntime import handover, init, namespaces, spec, steps, zygote  # noqa: F401
        from sandboxruntime.guest import immortal, warm

        prepared = warm.prepare(preload)
        del sys.path[0]
        spec.decoder(spec.Spec)
        immortal.freeze()
        populate = warm.learn_pages(prepared, _practise)
        _check_fit()
    except BaseException as exc:
        ready.sendall(json.dumps({"unfit": f"{type(exc).__name__}: {exc}"[:1000]}).encode())
        raise
    ready.sendall(json.dumps({"ready": len(sys.modules)}).encode())
    taken = _serve(control, populate)
    # Only kernels get here, confined and verified, with their sockets and environment.
    warm.finish(prepared, *taken)


def _check_fit() -> None:
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise Unfit(f"{threads} threads run; a fork would take only one of them along")


def _serve(control: socket.socket, populate: Populate) -> Taken:
    """Fork a child for every request until the launcher closes the socket. Returns in children."""
    from sandboxruntime import syscalls
    from sandboxruntime.channel import close_fds, recv_message
    from sandboxruntime.namespaces import NAMESPACES

    # Linux reaps the children: the launcher watches them by pidfd.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, fds = recv_message(control)
        if message is None:
            os._exit(0)
        start = socket.socket(fileno=fds[0])
        task_fds = fds[1 : 1 + message["tasks"]]
        into = fds[1 + message["tasks"] :]
        try:
            pid, pidfd = syscalls.clone3(NAMESPACES, cgroup_fd=into[0] if into else -1)
        except OSError as exc:
            with contextlib.suppress(OSError):  # the launcher may have given up on this one
                start.send(str(exc).encode())
            pid, pidfd = -1, -1
        if pid == 0:
            control.close()
            close_fds(into)
            return _become_container(start, task_fds, populate)
        start.close()
        close_fds([fd for fd in (*fds[1:], pidfd) if fd >= 0])


def _become_container(start: socket.socket, task_fds: list[int], populate: Populate) -> Taken:
    """Pid 1 of a new container, and its child, which becomes the kernel and returns.

    Both wait for the launcher's orders, which come once for each, and confine themselves side by
    side: pid 1 mounts while the kernel's process has its memory copied. A spare waits for long.
    """
    from sandboxruntime import init, syscalls
    from sandboxruntime.steps import Step
    from sandboxruntime.zygote import BORN

    born = False
    try:
        syscalls.prctl(init.PR_SET_DUMPABLE, 0)
        os.chdir("/")
        for fd in task_fds:
            os.write(fd, b"0")
            os.close(fd)
        syscalls.unshare(syscalls.CloneFlag.NEWCGROUP)
        # One for both processes, and as the zygote's uid: Linux allows each host uid 200 keys, and
        # one user may have more kernels than that, from more zygotes than one.
        init.join_keyring()
        # Blocked until pid 1 waits for them, so that no end of its child goes unnoticed.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        kernels_end, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        start.send(BORN)  # the launcher maps the ids while the kernel's process is forked
        born = True
        child = os.fork()
        if child == 0:
            ours.close()
            return _become_kernel(start, kernels_end, populate)
        kernels_end.close()
        attach_fd = os.open("/tmp", os.O_PATH | os.O_DIRECTORY)  # any directory does
        ahead = init.begin_ahead()
        context = _receive_orders(start, attach_fd)
        context.ahead = ahead if ahead.fits(context.spec) else None
    except BaseException as exc:
        try:
            if not born:  # or it would not listen
                start.send(str(exc).encode()[:4000])
        finally:
            os._exit(70)  # the launcher sees its sockets close

    def share_root(context: init.Context) -> None:
        init.CREATE_STEPS[Step.PIVOT](context)  # moves the child's root and directory, too
        ours.send(b"r")
        ours.close()

    steps = {**_remaining(init.CREATE_STEPS), Step.PIVOT: share_root}
    init.confine(context, steps)
    try:
        init.be_init(context, child)
    except BaseException as exc:
        init.report_failure(context.status_fd, Step.HAND_OVER, exc)


def _remaining(steps: dict[Any, Any]) -> dict[Any, Any]:
    """Set-up without the steps that pid 1 has taken before it had its orders."""
    from sandboxruntime.steps import Step

    taken = (Step.ENTER_CGROUP, Step.CGROUP_NAMESPACE, Step.SESSION, Step.LOOPBACK)
    return {step: function for step, function in steps.items() if step not in taken}


def _become_kernel(start: socket.socket, pid_1: socket.socket, populate: Populate) -> Taken:
    """The kernel's process: confined by the same steps, in what pid 1 has made."""
    from sandboxruntime import capabilities, init
    from sandboxruntime.channel import close_fds
    from sandboxruntime.handover import take_over
    from sandboxruntime.steps import Step

    try:
        populate()
        init.begin_session()
        capabilities.drop_bounding()
        context = _receive_orders(start, -1)
        close_fds([context.exit_fd, *context.kept_fds])  # pid 1's alone
        context.exit_fd, context.kept_fds = -1, []
    except BaseException:
        os._exit(70)

    def await_root(_context: init.Context) -> None:
        if pid_1.recv(1) != b"r":
            raise EOFError("pid 1 has ended")
        pid_1.close()  # here: an object that outlived CLOSE_FDS would close another's number
        if os.getcwd() != "/":
            raise OSError(f"working directory is {os.getcwd()}, not the new root")

    # What needs no root file system is done while pid 1 makes that.
    early = (Step.RLIMITS, Step.CREDENTIALS, Step.CAPABILITIES, Step.NO_NEW_PRIVS)
    late = [step for step in init.JOIN_STEPS if step not in (*early, Step.SESSION)]
    steps: dict[Step, Callable[[init.Context], None]] = {
        **{step: init.JOIN_STEPS[step] for step in early},
        Step.PIVOT: await_root,
        **{step: init.JOIN_STEPS[step] for step in late},
    }
    init.confine(context, steps)
    return take_over(context.handover_fd, context.status_fd)


def _practise() -> None:
    """In a rehearsal: what a child does before it is the kernel, as far as that needs no right.

    It teaches which memory that touches.
    """
    from sandboxruntime import init, landlock, rlimits, spec
    from sandboxruntime.cgroup import Limits
    from sandboxruntime.zygote import decode_program, encode_program

    ids = (spec.IdMapping(0, 1, 1),)
    example = spec.Spec(
        "container", "host", spec.Rootfs(("/lower",), "/upper", "/work"),
        spec.Process(1000, 1000, {"RLIMIT_NOFILE": (1, 1)}), ids, ids, "group", Limits(),
        binds=(spec.Bind("/work", "/work", spec.Credentials(1000, 1000)),), writable=("/tmp",),
    )  # fmt: skip
    orders = json.dumps({"spec": spec.to_json(example), "seccomp": encode_program(bytes(4096))})
    message = json.loads(orders)
    decode_program(message["seccomp"])
    context = init.context_from(spec.from_json(spec.Spec, message["spec"]), b"", -1, [-1] * 7)
    rlimits.plan_own({**rlimits.DEFAULTS, **context.spec.process.rlimits})
    landlock.plan_ruleset(landlock.abi_version() or 1, context.spec.writable)
    init.default_signals()


def _receive_orders(start: socket.socket, attach_fd: int) -> Any:
    """The launcher's orders as a context, with the user namespace's root as our user."""
    from sandboxruntime import init
    from sandboxruntime.spec import Spec, from_json
    from sandboxruntime.steps import Step
    from sandboxruntime.zygote import decode_program, receive_orders

    message, fds = receive_orders(start)
    start.close()
    context = init.context_from(
        from_json(Spec, message["spec"]), decode_program(message["seccomp"]), attach_fd, fds
    )
    if message["fail_at"]:
        context.fail_at = Step(message["fail_at"])
    try:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    except BaseException as exc:
        init.report_failure(context.status_fd, Step.IDMAP, exc)
    return context


if __name__ == "__main__":
    main()
