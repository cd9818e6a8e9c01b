"""Containers that another OCI runtime makes: `runc` run on a bundle, with our pid 1 in it.

What is on the host stays ours: the cgroup with its limits, the root file system, the binds, the
outside verification, the hand-over. The runtime makes namespaces, mounts, masks, credentials and
a system call filter of config.json; pid 1 (guest/pid1.py) adds Landlock and our own filter.
The runtime's own records are below `state`, so that `runc --root STATE/runc list` shows them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

from sandboxruntime import rlimits, syscalls
from sandboxruntime.cgroup import Cgroup, remove_from_others
from sandboxruntime.errors import HostError, SetupError
from sandboxruntime.identity import check_identity
from sandboxruntime.init import Context
from sandboxruntime.mounts import plan_mounts, refuse_links
from sandboxruntime.namespaces import end_with_parent
from sandboxruntime.oci_config import oci_config
from sandboxruntime.processes import open_process
from sandboxruntime.rootfs import Bundle, MountFactory
from sandboxruntime.spec import Executor, Spec, to_json
from sandboxruntime.steps import Step
from sandboxruntime.syscalls import CloneFlag, MountFlag
from sandboxruntime.validate import EXECUTORS
from sandboxruntime.zygote import encode_program

__all__ = ["find_program", "forget", "run"]

# As the launcher's own PATH would miss sbin.
SEARCH_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEADLINE_S: Final = 20.0
FIRST_FD: Final = 3  # where a runtime puts the descriptors that it is told to preserve
_HIGH_FD: Final = 100
_PID_1: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); from sandboxruntime.guest.pid1 import main; "
    "main(sys.argv[2])"
)


def find_program(name: str) -> str:
    """The path of a runtime. Raises HostError where it is not installed."""
    found = shutil.which(name, path=SEARCH_PATH)
    if found is None:
        raise HostError(
            f"the executor {name} is not installed (looked in {SEARCH_PATH})",
            feature=f"executor:{name}",
            hint=f"apt-get install {name}, or leave `executor` out of the profile",
        )
    return found


def run(mounts: MountFactory, state: str, context: Context, cgroup: Cgroup) -> tuple[int, int]:
    """Have a spec's executor make its container; its pid 1 and a pidfd, which the caller owns.

    Returns once pid 1 runs; it reports to the context's pipes as every pid 1 does. Blocks for as
    long as the runtime takes. Raises HostError or SetupError; forget() clears what is left then.
    """
    spec = context.spec
    assert spec.executor is not None
    program = find_program(spec.executor.program)
    _check_root(context)
    with mounts.bundle(context.root_fd, context.bind_fds) as bundle, contextlib.ExitStack() as temp:
        orders_fd = os.memfd_create("orders", os.MFD_CLOEXEC)
        temp.callback(os.close, orders_fd)
        fds = [orders_fd, context.status_fd, context.handover_fd, context.exit_fd, context.log_fd,
               *context.kept_fds]  # fmt: skip
        _write_bundle(bundle, spec)
        _write_all(orders_fd, json.dumps(_orders(context)).encode())
        os.lseek(orders_fd, 0, os.SEEK_SET)
        log, pid_file = f"{bundle.directory}/log", f"{bundle.directory}/pid"
        argv = [
            program, "--root", _root(state, spec.executor.program), "--log", log,
            "--log-format", "json", "run", "--detach", "--bundle", bundle.directory,
            "--pid-file", pid_file, "--preserve-fds", str(len(fds)), spec.container_id,
        ]  # fmt: skip
        status = _execute(argv, fds, output_fd=context.log_fd)
        if status != 0:
            raise SetupError(
                f"setup failed at {Step.CLONE}: {spec.executor.program} "
                f"{_ending(status)}: {_last_error(log)}",
                step=Step.CLONE,
            )
        with open(pid_file, encoding="ascii") as stream:
            pid = int(stream.read())
    pidfd = open_process(pid)
    try:
        check_identity(pid, pidfd, spec, cgroup)
        cgroup.update(spec.limits)  # what another program has written to is read back
        cgroup.guard_devices()  # runc puts its own program in the place of a single one
    except BaseException:
        os.close(pidfd)
        raise
    return pid, pidfd


def forget(state: str, container_id: str, cgroup: Cgroup) -> None:
    """End what a runtime still has of a container, and remove its records. Idempotent.

    What it made of `cgroup` in hierarchies that are not ours goes, too: one that was killed while
    it made a container has no record of that.
    """
    for name in EXECUTORS:
        root = _root(state, name)
        records = f"{root}/{container_id}"
        if not os.path.isdir(records):
            continue
        with contextlib.suppress(HostError):  # uninstalled meanwhile: the records go all the same
            argv = [find_program(name), "--root", root, "delete", "--force", container_id]
            null_fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            try:
                _execute(argv, [], output_fd=null_fd)
            finally:
                os.close(null_fd)
        shutil.rmtree(records, ignore_errors=True)
    with contextlib.suppress(OSError):  # others are there, or none was
        for name in EXECUTORS:
            os.rmdir(_root(state, name))
        os.rmdir(state)
    remove_from_others(cgroup.layout, cgroup.path)


def _root(state: str, program: str) -> str:
    return f"{state}/{program}"


def _check_root(context: Context) -> None:
    try:
        refuse_links(plan_mounts(context.spec), context.root_fd)
    except OSError as exc:
        where = "; ".join(exc.__notes__)
        raise SetupError(
            f"setup failed at {Step.MOUNTS}: {exc.strerror}: {where}",
            step=Step.MOUNTS,
            errno=exc.errno or 0,
        ) from exc


def _write_bundle(bundle: Bundle, spec: Spec) -> None:
    assert spec.executor is not None
    config = oci_config(
        spec,
        rootfs=bundle.rootfs,
        binds=bundle.binds,
        args=_pid_1(spec.executor),
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"},
        rlimits=rlimits.plan_own({**rlimits.DEFAULTS, **spec.process.rlimits}),
        machine=syscalls.machine(),
    )
    with open(f"{bundle.directory}/config.json", "w", encoding="utf-8") as stream:
        json.dump(config, stream)


def _pid_1(executor: Executor) -> list[str]:
    # -I -S: nothing of the environment, of site-packages, or of the user's layer.
    return [executor.python, "-I", "-S", "-c", _PID_1, executor.packages, str(FIRST_FD)]


def _orders(context: Context) -> Mapping[str, object]:
    return {"spec": to_json(context.spec), "program": encode_program(context.seccomp_program)}


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _execute(argv: Sequence[str], fds: Sequence[int], *, output_fd: int) -> int:
    """Run a program with `fds` from FIRST_FD on; its wait status. Kills it after DEADLINE_S.

    It dies with this process, so that nothing is made for which there is nobody to account.
    """
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become(argv, fds, output_fd, parent)
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)  # our child, not reaped: the number is still its own
        os.waitpid(pid, 0)
        raise
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        deadline = time.monotonic() + DEADLINE_S
        while not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            if time.monotonic() > deadline:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                break
        return os.waitpid(pid, 0)[1]
    finally:
        os.close(pidfd)


def _become(argv: Sequence[str], fds: Sequence[int], output_fd: int, parent: int) -> NoReturn:
    try:
        end_with_parent(parent)
        # Where the host's mounts propagate, those that the runtime binds would go on receiving
        # them in the container: rootfsPropagation is of the root alone.
        syscalls.unshare(CloneFlag.NEWNS)
        syscalls.mount("none", "/", None, MountFlag.REC | MountFlag.PRIVATE)
        for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(signum, signal.SIG_DFL)
        os.umask(0o022)
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD) for fd in (output_fd, *fds)]
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(high[0], 1)
        os.dup2(high[0], 2)
        for index, fd in enumerate(high[1:]):
            os.dup2(fd, FIRST_FD + index)
        syscalls.close_range(FIRST_FD + len(fds))
        os.execve(argv[0], list(argv), {"PATH": SEARCH_PATH})
    finally:
        os._exit(127)


def _ending(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGKILL:
        return f"did not end within {DEADLINE_S:g} s"
    return f"ended with {code}" if code >= 0 else f"was ended by signal {-code}"


def _last_error(path: str) -> str:
    """The last message of a runtime's JSON log."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            messages = [json.loads(line).get("msg", "") for line in stream if line.strip()]
        return messages[-1] if messages else "it said nothing"
    except (OSError, ValueError, AttributeError) as exc:
        return f"its log cannot be read: {exc}"
