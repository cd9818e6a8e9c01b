"""The verbs that follow `create`, and those that runc adds. Effects.

One process carries out one verb and ends; what is between two of them, records.py remembers.
Source: runtime.md, Operations.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sandboxruntime import syscalls
from sandboxruntime.bundles.config import Process, parse_config
from sandboxruntime.bundles.creation import (
    NAMESPACE_FLAGS,
    SETUP_DEADLINE_S,
    cgroup_path,
    filter_of,
    open_console,
    write_pid_file,
)
from sandboxruntime.bundles.hooks import run_hooks
from sandboxruntime.bundles.records import Record, Records, cgroup_of, is_alive
from sandboxruntime.bundles.setup import START, become_joined
from sandboxruntime.cgroup import Cgroup, read_layout
from sandboxruntime.container import remove_cgroup
from sandboxruntime.errors import ContainerNotFound, SetupError, StateError
from sandboxruntime.init import PR_SET_DUMPABLE
from sandboxruntime.processes import open_process
from sandboxruntime.status import await_status
from sandboxruntime.steps import Step
from sandboxruntime.syscalls import CloneFlag

__all__ = [
    "delete",
    "execute",
    "kill",
    "pause",
    "processes",
    "resume",
    "start",
    "states",
    "update",
    "wait",
]


def start(records: Records, container_id: str) -> Record:
    """Let the program of a created container go on."""
    record = records.load(container_id)
    _demand(records, record, "created")
    fifo = records.fifo(record)
    fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fifo.unlink()  # first: of two that start, the one that cannot has failed
        os.write(fd, START)
    finally:
        os.close(fd)
    with contextlib.suppress(SetupError):  # runtime.md: a failure is no reason to stop it
        run_hooks(records.config(record), "poststart",
                  json.dumps(records.state(record, "running")).encode())  # fmt: skip
    return record


def _demand(records: Records, record: Record, *statuses: str) -> None:
    status = records.status(record)
    if status not in statuses:
        raise StateError(
            f"container {record.id} is {status}, not {' or '.join(statuses)}",
            container_id=record.id, status=status,
        )  # fmt: skip


def kill(records: Records, container_id: str, signum: int, *, everybody: bool = False) -> None:
    """Signal the container's first process, or all of its processes."""
    record = records.load(container_id)
    if everybody:
        for pid in cgroup_of(record).pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)
        return
    _demand(records, record, "created", "running", "paused")
    pidfd = open_process(record.pid)
    try:
        if is_alive(record):
            signal.pidfd_send_signal(pidfd, signum)
    finally:
        os.close(pidfd)


def delete(records: Records, container_id: str, *, force: bool = False) -> None:
    """Give back everything that create() acquired. `force` kills first, and minds no absence."""
    try:
        record = records.load(container_id)
    except ContainerNotFound:
        if not force:
            raise
        if records.leftover(container_id):
            _delete_leftover(records, container_id)
        return
    if not force:
        _demand(records, record, "created", "stopped")
    state, config = records.state(record, "stopped"), records.config(record)
    remove_cgroup(cgroup_of(record))
    records.forget(container_id)
    with contextlib.suppress(SetupError):  # runtime.md: a warning, and the rest goes on
        run_hooks(config, "poststop", json.dumps(state).encode())


def _delete_leftover(records: Records, container_id: str) -> None:
    """What a `create` that was killed had made; its process may wait to be started."""
    with contextlib.suppress(FileNotFoundError, ValueError):  # it had not come as far as that
        config = parse_config(records.config_data(container_id))
        path = cgroup_path(config, container_id)
        if path not in {record.cgroup for record in records.all()}:
            remove_cgroup(Cgroup(read_layout(), path))
    records.forget(container_id)


def wait(pid: int) -> int:
    """The exit code of a child of this process: 128 and the signal, as shells have it."""
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def execute(
    records: Records, container_id: str, process: Process, *, console_socket: Path | None = None,
    pid_file: Path | None = None, preserve_fds: int = 0,
) -> int:  # fmt: skip
    """Start one more process in a running container; its pid, a child of this process."""
    record = records.load(container_id)
    _demand(records, record, "running")
    config = records.config(record)
    console = open_console(process, console_socket)
    cgroup = cgroup_of(record)
    flags = CloneFlag(0)
    for kind in config.namespaces:
        flags |= NAMESPACE_FLAGS[kind]
    status_read, status_write = os.pipe2(os.O_CLOEXEC)
    target = open_process(record.pid)
    entry_fds, cgroup_fd = cgroup.entry_fds(), cgroup.directory_fd()
    filter_program = filter_of(config)
    if flags & CloneFlag.NEWPID:
        syscalls.setns(target, CloneFlag.NEWPID)  # of this process's children
    pid, _ = syscalls.clone3(CloneFlag(0), cgroup_fd=cgroup_fd)
    if pid == 0:
        try:
            syscalls.prctl(PR_SET_DUMPABLE, 0)  # nobody inside looks into it before it is confined
            for fd in entry_fds:
                os.write(fd, b"0")
            syscalls.setns(target, flags & ~CloneFlag.NEWPID)
            if flags & CloneFlag.NEWUSER:
                os.setresgid(0, 0, 0)
                os.setresuid(0, 0, 0)
            os.chdir("/")
        except OSError as exc:
            os.write(
                status_write,
                json.dumps(
                    {"step": Step.CLONE, "errno": exc.errno or 0, "message": str(exc)}
                ).encode(),
            )
            os._exit(70)  # fmt: skip
        become_joined(process, status_fd=status_write, filter_program=filter_program,
                      console=console, preserve=preserve_fds)  # fmt: skip
    os.close(status_write)
    try:
        await_status(status_read, SETUP_DEADLINE_S)
    except BaseException:
        os.waitpid(pid, 0)
        raise
    if pid_file is not None:
        write_pid_file(pid_file, pid)
    return pid


def processes(records: Records, container_id: str) -> list[int]:
    """The host's pids of everything in the container's cgroup."""
    return cgroup_of(records.load(container_id)).pids()


def pause(records: Records, container_id: str) -> None:
    """Freeze a running container."""
    record = records.load(container_id)
    _demand(records, record, "running", "created")
    cgroup_of(record).freeze()


def resume(records: Records, container_id: str) -> None:
    """Thaw a paused container."""
    record = records.load(container_id)
    _demand(records, record, "paused")
    cgroup_of(record).thaw()


def update(records: Records, container_id: str, resources: Mapping[str, Any]) -> None:
    """Change limits; what `resources` (linux.resources) leaves out, or has as 0, stays."""
    record = records.load(container_id)
    _demand(records, record, "created", "running", "paused")
    data = records.config_data(container_id)
    merged = data.setdefault("linux", {}).setdefault("resources", {})
    for group, members in resources.items():
        if isinstance(members, dict):
            given = {name: value for name, value in members.items() if value}
            merged[group] = {**(merged.get(group) or {}), **given}
        elif members:
            merged[group] = members
    cgroup_of(record).update(parse_config(data).limits)
    records.save_config(record, data)


def states(records: Records) -> list[dict[str, Any]]:
    """The state of every container."""
    return [records.state(record) for record in records.all()]
