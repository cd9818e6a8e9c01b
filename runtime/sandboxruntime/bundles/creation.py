"""`create`: a container up to its program, which waits to be started. Effects.

Everything that needs the host's rights is opened before there is a process (`_prepare`); then the
process confines itself (setup.py) while this one writes its maps and runs the hooks.
Source: runtime.md, Create and Lifecycle.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from sandboxruntime import syscalls
from sandboxruntime.bundles.capability_names import capability_mask
from sandboxruntime.bundles.config import Config, Process, parse_config
from sandboxruntime.bundles.filters import compile_oci_filter
from sandboxruntime.bundles.hooks import run_hooks
from sandboxruntime.bundles.mounts import open_bind, plan_cgroup_mounts
from sandboxruntime.bundles.records import Record, Records
from sandboxruntime.bundles.setup import (
    GO,
    HOOKS_NOW,
    Setup,
    become_container,
)
from sandboxruntime.cgroup import Cgroup, read_layout
from sandboxruntime.container import remove_cgroup
from sandboxruntime.errors import HostError, SpecError
from sandboxruntime.namespaces import render_map, write_kernel_file
from sandboxruntime.status import await_status, setup_error
from sandboxruntime.steps import Step
from sandboxruntime.syscalls import (
    AT_EMPTY_PATH,
    AT_RECURSIVE,
    CloneFlag,
    MountAttr,
    MountFlag,
    OpenTreeFlag,
)
from sandboxruntime.verify import start_ticks
from sandboxruntime.zygote import end

__all__ = [
    "NAMESPACE_FLAGS",
    "SETUP_DEADLINE_S",
    "Creation",
    "cgroup_path",
    "create",
    "filter_of",
    "open_console",
    "write_pid_file",
]

SETUP_DEADLINE_S = 60.0  # hooks of a network plug-in are in it
DEFAULT_PARENT = "sandboxruntime"
NAMESPACE_FLAGS = {
    "pid": CloneFlag.NEWPID, "network": CloneFlag.NEWNET, "mount": CloneFlag.NEWNS,
    "ipc": CloneFlag.NEWIPC, "uts": CloneFlag.NEWUTS, "user": CloneFlag.NEWUSER,
    "cgroup": CloneFlag.NEWCGROUP,
}  # fmt: skip
_PROC_NAMES = {"pid": "pid", "network": "net", "ipc": "ipc", "uts": "uts"}
# What every program expects in /dev, whatever the config's rules say (config-linux.md).
_DEVICE_DEFAULTS = tuple(f"c {number} rwm" for number in
                         ("1:3", "1:5", "1:7", "1:8", "1:9", "5:0", "5:2", "136:*"))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Creation:
    """The arguments of `create`."""

    container_id: str
    bundle: Path
    console_socket: Path | None = None
    pid_file: Path | None = None
    preserve_fds: int = 0


def create(records: Records, asked: Creation) -> Record:
    """Make a container up to its program, which waits for start(). Leaves nothing on failure."""
    bundle = asked.bundle.resolve()
    with open(bundle / "config.json", encoding="utf-8") as stream:
        text = stream.read()
    config = parse_config(json.loads(text))
    console = open_console(config.process, asked.console_socket)
    os.chdir(bundle)  # relative paths of the config are the bundle's
    with contextlib.ExitStack() as undo, records.new(asked.container_id) as directory:
        (directory / "config.json").write_text(text)
        path = cgroup_path(config, asked.container_id)
        cgroup = Cgroup.create(read_layout(), path, config.limits)
        undo.callback(remove_cgroup, cgroup)
        os.mkfifo(directory / "start", 0o600)
        record = Record(asked.container_id, str(bundle), 0, 0, path,
                        datetime.now(UTC).isoformat())  # fmt: skip
        with contextlib.ExitStack() as temporary:
            setup, sync, status_read = _prepare(config, records, record, temporary)
            setup.console, setup.preserve = console, asked.preserve_fds
            pid, pidfd = _clone(setup, cgroup, temporary)
            undo.callback(end, pidfd)
            record = replace(record, pid=pid, ticks=start_ticks(pid))
            _accompany(config, records, record, cgroup, sync)
            await_status(status_read, SETUP_DEADLINE_S)
        records.save(record)
        if asked.pid_file is not None:
            write_pid_file(asked.pid_file, pid)
        undo.pop_all()
    os.close(pidfd)
    return record


def cgroup_path(config: Config, container_id: str) -> str:
    """Below the hierarchies' roots; a relative one is below a cgroup of ours. Pure."""
    path = config.cgroups_path.strip("/") or container_id
    return path if config.cgroups_path.startswith("/") else f"{DEFAULT_PARENT}/{path}"


def open_console(process: Process, path: Path | None) -> socket.socket | None:
    """The socket that takes a terminal's master. Raises SpecError when one is not as asked."""
    if process.terminal != (path is not None):
        what = "needs" if process.terminal else "has no use for"
        raise SpecError(f"process.terminal is {str(process.terminal).lower()}, which {what} "
                        "--console-socket", field="process.terminal")  # fmt: skip
    if path is None:
        return None
    console = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    console.connect(str(path.absolute()))
    return console


def _prepare(
    config: Config, records: Records, record: Record, temporary: contextlib.ExitStack
) -> tuple[Setup, socket.socket, int]:
    """Everything that is opened with the host's rights, before there is a process."""
    layout = read_layout()
    root = os.path.abspath(config.root)
    userns = "user" in config.namespaces
    controlled = "devices" in layout.v1
    mknod = config.process.capabilities["bounding"] & capability_mask(["CAP_MKNOD"])
    if not controlled and not userns and mknod:
        raise HostError(
            "this host has no devices cgroup controller, and the container would have CAP_MKNOD",
            feature="cgroup:devices",
            hint="leave the capability out, or use a user namespace",
        )
    flags = OpenTreeFlag.CLONE | OpenTreeFlag.CLOEXEC | AT_RECURSIVE
    root_fd = syscalls.open_tree(syscalls.AT_FDCWD, root, flags)
    temporary.callback(os.close, root_fd)
    # Nodes in an image are nobody's to open where nothing else says which.
    attributes = MountAttr(0) if controlled else MountAttr.NODEV
    syscalls.mount_setattr(root_fd, "", flags=AT_EMPTY_PATH | AT_RECURSIVE, attr_set=attributes,
                           propagation=MountFlag.PRIVATE)  # fmt: skip
    mounts = []
    for mount in config.mounts:
        planned = [mount]
        if mount.type in ("cgroup", "cgroup2"):
            planned = plan_cgroup_mounts(mount, layout, record.cgroup)
        for each in planned:
            try:
                bind_fd = open_bind(each)
            except OSError as exc:
                raise setup_error(
                    Step.BINDS, exc.errno or 0, f"{each.destination}: {exc.strerror}: {each.source}"
                ) from exc
            if bind_fd is not None:
                temporary.callback(_close_quietly, bind_fd)
            mounts.append((each, bind_fd))
    status_read, status_write = os.pipe2(os.O_CLOEXEC)
    temporary.callback(os.close, status_read)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    temporary.callback(ours.close)
    start_fd = os.open(records.fifo(record), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    temporary.callback(os.close, start_fd)

    def state() -> bytes:
        return json.dumps({**records.state(record, "created"), "pid": 1}).encode()

    known = state()  # asked inside, where the records are out of sight
    setup = Setup(
        config=config,
        root=root,
        root_fd=root_fd,
        mounts=mounts,
        cgroup_fds=[],
        status_fd=status_write,
        sync=theirs,
        start_fd=start_fd,
        filter=filter_of(config),
        state=lambda: known,
        run_hooks=lambda name, text: run_hooks(config, name, text),
    )
    return setup, ours, status_read


def filter_of(config: Config) -> bytes | None:
    return compile_oci_filter(config.seccomp, syscalls.machine()) if config.seccomp else None


def _close_quietly(fd: int) -> None:
    with contextlib.suppress(OSError):  # the mount was made, and the descriptor closed with it
        os.close(fd)


@contextlib.contextmanager
def _joined(config: Config) -> Iterator[None]:
    """Be in the namespaces that the config has paths of, so that a clone is in them, too."""
    with contextlib.ExitStack() as back:
        for kind, path in config.namespaces.items():
            if path:
                own = os.open(f"/proc/self/ns/{_PROC_NAMES[kind]}", os.O_RDONLY | os.O_CLOEXEC)
                back.callback(os.close, own)
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                back.callback(os.close, fd)
                syscalls.setns(fd, NAMESPACE_FLAGS[kind])
                back.callback(syscalls.setns, own, NAMESPACE_FLAGS[kind])
        yield


def _clone(setup: Setup, cgroup: Cgroup, temporary: contextlib.ExitStack) -> tuple[int, int]:
    config = setup.config
    flags = CloneFlag(0)
    for kind, path in config.namespaces.items():
        if not path and kind != "cgroup":
            flags |= NAMESPACE_FLAGS[kind]
    setup.cgroup_fds = cgroup.entry_fds()
    for fd in setup.cgroup_fds:
        temporary.callback(os.close, fd)
    cgroup_fd = cgroup.directory_fd()
    if cgroup_fd >= 0:
        temporary.callback(os.close, cgroup_fd)
    _allow_devices(cgroup, ["a"])  # until its nodes are made
    with _joined(config):
        pid, pidfd = syscalls.clone3(flags, cgroup_fd=cgroup_fd)
        if pid == 0:
            temporary.pop_all()  # nobody here closes what the process goes on with
            become_container(setup)
    os.close(setup.status_fd)
    setup.sync.close()
    return pid, pidfd


def _accompany(
    config: Config, records: Records, record: Record, cgroup: Cgroup, sync: socket.socket
) -> None:
    """The parent's part: maps, then devices and hooks once the mounts are made."""
    if "user" in config.namespaces:
        write_kernel_file(f"/proc/{record.pid}/uid_map", render_map(config.uid_mappings))
        write_kernel_file(f"/proc/{record.pid}/gid_map", render_map(config.gid_mappings))
    sync.send(GO)
    sync.settimeout(SETUP_DEADLINE_S)
    if sync.recv(1) != HOOKS_NOW:
        return  # it has ended, and has said why
    if "devices" in cgroup.layout.v1:
        _allow_devices(cgroup, None)
        for rule in config.device_rules:
            (_allow_devices if rule.allow else _deny_devices)(cgroup, [rule.line])
        _allow_devices(cgroup, list(_DEVICE_DEFAULTS))
    state = json.dumps({**records.state(record, "created"), "status": "creating"}).encode()
    for name in ("prestart", "createRuntime"):
        run_hooks(config, name, state)
    sync.send(GO)


def _allow_devices(cgroup: Cgroup, lines: list[str] | None) -> None:
    if lines is None:
        _deny_devices(cgroup, ["a"])
        return
    _write_devices(cgroup, "devices.allow", lines)


def _deny_devices(cgroup: Cgroup, lines: list[str]) -> None:
    _write_devices(cgroup, "devices.deny", lines)


def _write_devices(cgroup: Cgroup, file: str, lines: Sequence[str]) -> None:
    if "devices" in cgroup.layout.v1:
        directory = cgroup.layout.directory("devices", cgroup.path)
        for line in lines:
            write_kernel_file(f"{directory}/{file}", line)


def write_pid_file(path: Path, pid: int) -> None:
    """Whole or not at all: readers wait for it to appear."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(str(pid))
    partial.rename(path)
