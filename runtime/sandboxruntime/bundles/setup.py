"""The container's first process, from its clone to the exec of its program.

Theory of operation. clone3 makes it in the new namespaces; it is a fork of the command line's
process. It confines itself in the order below, reports that it is ready (or which step failed)
through the status pipe, and waits at the start FIFO. What the config keeps open to the world (a
namespace of the host's, a capability, no filter) stays open: here the config decides.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pwd
import select
import signal
import socket
import struct
import termios
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NoReturn

from sandboxruntime import rlimits, seccomp, syscalls
from sandboxruntime.bundles.config import Config, Mount, Process
from sandboxruntime.bundles.mounts import (
    DEFAULT_DEVICES,
    make_device,
    make_links,
    mask,
    mount_one,
    open_bind,
    set_read_only,
)
from sandboxruntime.init import default_signals, join_keyring, report_failure
from sandboxruntime.namespaces import bring_up_loopback, pivot_to
from sandboxruntime.steps import Step
from sandboxruntime.syscalls import AT_EMPTY_PATH, CloneFlag, MountAttr, MountFlag, MoveMountFlag

__all__ = ["GO", "HOOKS_NOW", "Setup", "become_container", "become_joined"]

GO, HOOKS_NOW, START = b"g", b"h", b"s"
# include/uapi/linux/prctl.h
_KEEPCAPS, _CAPBSET_READ, _CAPBSET_DROP, _AMBIENT = 8, 23, 24, 47
_AMBIENT_RAISE, _AMBIENT_CLEAR_ALL = 2, 4
_NO_NEW_PRIVS, _DUMPABLE = 38, 4
_CLOSE_RANGE_CLOEXEC: Final = 4
_TIOCSPTLCK, _TIOCGPTN = 0x40045431, 0x80045430
_MOVE: Final = MoveMountFlag.F_EMPTY_PATH | MoveMountFlag.T_EMPTY_PATH
_PROPAGATION: Final = {
    "": MountFlag.PRIVATE, "private": MountFlag.PRIVATE, "slave": MountFlag.SLAVE,
    "shared": MountFlag.SHARED, "unbindable": MountFlag(1 << 17),
}  # fmt: skip


@dataclass(slots=True)
class Setup:
    """What the first process needs. Descriptors are inherited from the command line's process.

    `root_fd` is a detached mount of the root, `root` the path where it goes; `mounts` have the
    detached mount of each bind. `preserve` is how many descriptors from 3 on are the program's.
    """

    config: Config
    root: str
    root_fd: int
    mounts: list[tuple[Mount, int | None]]
    cgroup_fds: list[int]
    status_fd: int
    sync: socket.socket
    start_fd: int
    filter: bytes | None
    state: Callable[[], bytes]
    run_hooks: Callable[[str, bytes], None]
    console: socket.socket | None = None
    preserve: int = 0
    attach_fd: int = -1
    timings: dict[str, float] = field(default_factory=dict)


def become_container(setup: Setup) -> NoReturn:
    """The first process: every step in its order, then the program."""
    step = Step.IDMAP
    try:
        syscalls.prctl(_DUMPABLE, 0)
        # Opened while we are who made the directories above; soon we may be somebody else.
        setup.attach_fd = os.open(setup.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if setup.sync.recv(1) != GO:
            os._exit(70)  # the parent has failed, and has said so
        if "user" in setup.config.namespaces:
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
        for step, function in _STEPS.items():
            began = time.monotonic()
            function(setup)
            setup.timings[step] = (time.monotonic() - began) * 1000
        step = Step.HAND_OVER
        program = find_program(setup.config.process)
        os.write(setup.status_fd, json.dumps({"timings": setup.timings}).encode() + b"\n")
        os.close(setup.status_fd)
        _await_start(setup)
    except BaseException as exc:
        report_failure(setup.status_fd, step, exc)
    _execute(program, setup.config.process, setup.preserve)


def _await_start(setup: Setup) -> None:
    """Until `start` writes to the FIFO. No writer ever is not the end of the file, so: poll."""
    poll = select.poll()
    poll.register(setup.start_fd, select.POLLIN)
    poll.poll()
    if os.read(setup.start_fd, 1) != START:
        os._exit(70)  # deleted before it was started
    setup.run_hooks("startContainer", setup.state())


def become_joined(
    process: Process,
    *,
    status_fd: int,
    filter_program: bytes | None,
    console: socket.socket | None,
    preserve: int,
) -> NoReturn:
    """One more process, whose parent has joined the container's namespaces (exec)."""
    step = Step.SESSION
    try:
        join_keyring()
        os.setsid()
        default_signals()
        if process.terminal:
            _terminal(process, console)
        step = Step.CREDENTIALS
        _confine(process, filter_program)
        step = Step.HAND_OVER
        program = find_program(process)
        os.write(status_fd, json.dumps({"timings": {}}).encode() + b"\n")
        os.close(status_fd)
    except BaseException as exc:
        report_failure(status_fd, step, exc)
    _execute(program, process, preserve)


def _enter_cgroup(setup: Setup) -> None:
    for fd in setup.cgroup_fds:
        os.write(fd, b"0")  # opened by root, and that is whose rights count
        os.close(fd)


def _cgroup_namespace(setup: Setup) -> None:
    if "cgroup" in setup.config.namespaces:
        syscalls.unshare(CloneFlag.NEWCGROUP)


def _session(setup: Setup) -> None:
    join_keyring()
    os.setsid()
    default_signals()
    if setup.config.process.oom_score_adj is not None:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(setup.config.process.oom_score_adj))


def _mounts(setup: Setup) -> None:
    config = setup.config
    syscalls.mount("none", "/", None, MountFlag.REC | MountFlag.PRIVATE)
    syscalls.move_mount(setup.root_fd, "", setup.attach_fd, "", _MOVE)
    for mount, bind_fd in setup.mounts:
        try:
            mount_one(mount, setup.root_fd, bind_fd)
        except OSError as exc:
            exc.add_note(f"mounting {mount.type or mount.source} on {mount.destination}")
            raise
    devices = {device.path: device for device in (*DEFAULT_DEVICES, *config.devices)}
    # A /dev that is the host's has its own.
    if not any(m.destination == "/dev" and fd is not None for m, fd in setup.mounts):
        for device in devices.values():
            make_device(device, setup.root_fd, bind="user" in config.namespaces)
        make_links(setup.root_fd)


def _hooks(setup: Setup) -> None:
    """Those of the runtime's process, which it runs while we wait; then those in here."""
    setup.sync.send(HOOKS_NOW)
    if setup.sync.recv(1) != GO:
        os._exit(70)
    setup.run_hooks("createContainer", setup.state())


def _masks(setup: Setup) -> None:
    for name, value in setup.config.sysctl.items():
        path = f"/proc/sys/{name.replace('.', '/')}"
        with open(path, "w", encoding="ascii", errors="strict") as file:
            file.write(value)
    root_fd = setup.root_fd
    for path in setup.config.read_only_paths:
        set_read_only(path, root_fd)
    for path in setup.config.masked_paths:
        mask(path, root_fd)


def _pivot(setup: Setup) -> None:
    pivot_to(setup.root_fd)
    name = setup.config.propagation
    recursive = name.startswith("r")
    flags = _PROPAGATION[name.removeprefix("r")] | (MountFlag.REC if recursive else MountFlag(0))
    syscalls.mount("none", "/", None, flags)


def _console(setup: Setup) -> None:
    process = setup.config.process
    if process.terminal:
        slave = _terminal(process, setup.console)
        bind = Mount("/dev/console", "bind", slave, ("bind",))
        mount_one(bind, setup.root_fd, open_bind(bind))
    if setup.config.read_only:
        syscalls.mount_setattr(setup.root_fd, "", flags=AT_EMPTY_PATH, attr_set=MountAttr.RDONLY)


def _terminal(process: Process, console: socket.socket | None) -> str:
    """A pseudo-terminal of the container's own as 0, 1, 2; its master goes to the console socket.

    The path of its other end. Source: runc, docs/terminals.md; pts(4), ioctl_tty(2).
    """
    assert console is not None
    master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    (number,) = struct.unpack("i", fcntl.ioctl(master, _TIOCGPTN, struct.pack("i", 0)))
    path = f"/dev/pts/{number}"
    slave = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    os.fchown(slave, process.uid, -1)
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for fd in (0, 1, 2):
        os.dup2(slave, fd)
    socket.send_fds(console, [b"/dev/ptmx"], [master])
    os.close(master)
    os.close(slave)
    console.close()
    return path


def _hostname(setup: Setup) -> None:
    config = setup.config
    if config.hostname:
        socket.sethostname(config.hostname)
    if config.domainname:
        syscalls.setdomainname(config.domainname)


def _loopback(setup: Setup) -> None:
    if setup.config.namespaces.get("network") == "":
        bring_up_loopback()


def _credentials(setup: Setup) -> None:
    _confine(setup.config.process, setup.filter)


def _confine(process: Process, filter_program: bytes | None) -> None:
    """Limits, directory, capabilities, ids, filter: what any process of a container gets."""
    rlimits.apply(process.rlimits)
    os.makedirs(process.cwd, exist_ok=True)
    os.umask(process.umask)
    if filter_program is not None and not process.no_new_privileges:
        seccomp.install(filter_program)  # takes CAP_SYS_ADMIN, which is about to go
    sets = process.capabilities
    capability = 0
    while _has_bounding(capability):
        if not sets["bounding"] >> capability & 1:
            syscalls.prctl(_CAPBSET_DROP, capability)
        capability += 1
    syscalls.prctl(_KEEPCAPS, 1)
    os.setgroups(process.groups)
    os.setresgid(process.gid, process.gid, process.gid)
    os.setresuid(process.uid, process.uid, process.uid)
    syscalls.prctl(_KEEPCAPS, 0)
    # An ambient capability has to be permitted and inheritable: raised in between.
    syscalls.prctl(_AMBIENT, _AMBIENT_CLEAR_ALL)
    syscalls.capset(sets["effective"], sets["permitted"], sets["inheritable"])
    for number in range(capability):
        if sets["ambient"] >> number & 1:
            syscalls.prctl(_AMBIENT, _AMBIENT_RAISE, number)
    os.chdir(process.cwd)
    if not os.getcwd().startswith("/"):
        raise OSError(errno.EXDEV, f"working directory {os.getcwd()} is outside the root")
    if process.no_new_privileges:
        syscalls.prctl(_NO_NEW_PRIVS, 1)
        if filter_program is not None:
            seccomp.install(filter_program)


def _has_bounding(capability: int) -> bool:
    """Whether Linux knows this capability: prctl(2) refuses numbers that it does not."""
    try:
        syscalls.prctl(_CAPBSET_READ, capability)
        return True
    except OSError:
        return False


_STEPS: dict[Step, Callable[[Setup], None]] = {
    Step.ENTER_CGROUP: _enter_cgroup,
    Step.CGROUP_NAMESPACE: _cgroup_namespace,
    Step.SESSION: _session,
    Step.MOUNTS: _mounts,
    Step.HOOKS: _hooks,
    Step.PIVOT: _pivot,
    Step.MASKS: _masks,
    Step.CONSOLE: _console,
    Step.HOSTNAME: _hostname,
    Step.LOOPBACK: _loopback,
    Step.CREDENTIALS: _credentials,
}


def environment_of(process: Process) -> dict[str, str]:
    """The program's environment; HOME of its user where the config has none."""
    env = dict(entry.partition("=")[::2] for entry in process.env)
    if "HOME" not in env:
        try:
            env["HOME"] = pwd.getpwuid(process.uid).pw_dir
        except (KeyError, OSError):
            env["HOME"] = "/"
    return env


def find_program(process: Process) -> str:
    """The path of the program, as its user finds it. Raises OSError in the words that Go uses.

    Callers of runtimes tell by them what an exit code 126 or 127 is for.
    """
    name = process.args[0]
    path = environment_of(process).get("PATH", "")
    candidates = [name] if "/" in name else [f"{part or '.'}/{name}" for part in path.split(":")]
    refused = False
    for candidate in candidates:
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
        refused = refused or os.path.exists(candidate)
    if refused:
        raise PermissionError(errno.EACCES, f'exec: "{name}": permission denied')
    if "/" in name:
        raise FileNotFoundError(
            errno.ENOENT, f'exec: "{name}": stat {name}: no such file or directory'
        )
    raise FileNotFoundError(errno.ENOENT, f'exec: "{name}": executable file not found in $PATH')


def _execute(program: str, process: Process, preserve: int) -> NoReturn:
    try:
        syscalls.close_range(3 + preserve, flags=_CLOSE_RANGE_CLOEXEC)
        for fd in range(3, 3 + preserve):
            os.set_inheritable(fd, True)
        for signum in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
            signal.signal(signum, signal.SIG_DFL)
        env: Mapping[str, str] = environment_of(process)
        os.execve(program, process.args, env)
    except OSError as exc:
        os.write(2, f"exec {program}: {exc}\n".encode())
    finally:
        os._exit(127)
