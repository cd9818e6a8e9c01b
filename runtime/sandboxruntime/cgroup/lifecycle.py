"""Making, freezing, killing and removing the directories of a cgroup. Effects."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import signal
import time
from collections.abc import Iterable, Mapping, Sequence

from sandboxruntime.cgroup.files import (
    apply_writes,
    populated,
    read_text,
    wait_for_event,
    write_text,
)
from sandboxruntime.cgroup.layout import Layout
from sandboxruntime.cgroup.limits import Write
from sandboxruntime.errors import HostError, StateError
from sandboxruntime.processes import open_process

__all__ = [
    "freeze",
    "is_frozen",
    "kill",
    "make_leaf",
    "make_parents",
    "pids",
    "remove",
    "thaw",
    "undo",
]

_MODE = 0o755
_ATTEMPTS = 5  # another process may remove an empty parent between two of our calls
_GONE_S, _DYING_S = 0.001, 0.1  # until the next look at processes that were killed
_STEP_S = 0.005  # where v1 offers no event to wait for
_GONE = (errno.ENOENT, errno.ENODEV)  # ENODEV: the file was open when the cgroup went


def make_parents(layout: Layout, path: str, writes: Sequence[Write], made: list[str]) -> None:
    """Make every directory above `path` and apply `writes` to each, from the root down.

    Directories made here are appended to `made`. Raises HostError.
    """
    parts = path.split("/")
    # The v2 root takes subtree_control too; v1 parents' files need a directory of their own.
    root_writes = [write for write in writes if not write.controller]
    if root_writes:
        apply_writes(layout, ".", root_writes)
    for depth in range(1, len(parts)):
        parent = "/".join(parts[:depth])
        for point in layout.hierarchies().values():
            if _make(f"{point}/{parent}"):
                made.append(f"{point}/{parent}")
        apply_writes(layout, parent, writes)


def make_leaf(directories: Mapping[str, str], path: str, made: list[str]) -> None:
    """Make the cgroup itself, in every hierarchy; StateError if it exists in any."""
    for directory in directories.values():
        for attempt in range(_ATTEMPTS):
            try:
                if not _make(directory):
                    raise StateError(
                        f"cgroup {directory} exists", container_id=path, status="exists"
                    )
                made.append(directory)
                break
            except FileNotFoundError:
                if attempt == _ATTEMPTS - 1:
                    raise
                _make(os.path.dirname(directory))


def _make(directory: str) -> bool:
    try:
        os.mkdir(directory, _MODE)
    except FileExistsError:
        return False
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise HostError(
            f"cannot make cgroup {directory}: {exc.strerror}",
            feature="cgroup",
            hint="run the daemon as root with the cgroup file systems mounted read-write",
        ) from exc
    return True


def undo(made: Sequence[str], cause: BaseException) -> None:
    """Remove what a failed creation made; what cannot be removed becomes a note on `cause`."""
    for directory in reversed(made):
        try:
            os.rmdir(directory)
        except OSError as exc:
            # EBUSY, ENOTEMPTY: another sandbox has moved into a parent that we made. Theirs now.
            if exc.errno not in (errno.EBUSY, errno.ENOTEMPTY, errno.ENOENT):
                cause.add_note(f"left behind {directory}: {exc.strerror}")


def freeze(directories: Mapping[str, str], timeout_s: float) -> None:
    """Stop every process, through v2 where it is mounted."""
    deadline = time.monotonic() + timeout_s
    if "" in directories:
        write_text(f"{directories['']}/cgroup.freeze", "1")
        frozen = wait_for_event(f"{directories['']}/cgroup.events", "frozen 1", deadline)
    else:
        state = _freezer(directories)
        if not state:
            raise HostError(
                "this host can freeze nothing: no cgroup v2 and no freezer controller",
                feature="cgroup:freezer",
                hint="mount -t cgroup2 none /sys/fs/cgroup/unified",
            )
        write_text(state, "FROZEN")
        frozen = _poll_state(state, "FROZEN", deadline)
    if not frozen:
        thaw(directories)
        raise HostError(f"processes did not freeze within {timeout_s} s", feature="cgroup:freezer")


def thaw(directories: Mapping[str, str]) -> None:
    """Let every process run, in v2 and in v1, whichever froze it."""
    if "" in directories:
        write_text(f"{directories['']}/cgroup.freeze", "0")
    if freezer := _freezer(directories):
        write_text(freezer, "THAWED")


def is_frozen(directories: Mapping[str, str]) -> bool:
    """Whether every process is stopped."""
    if "" in directories:
        events = read_text(f"{directories['']}/cgroup.events").splitlines()
        if "frozen 1" in events:
            return True
    freezer = _freezer(directories)
    return bool(freezer) and read_text(freezer).strip() == "FROZEN"


def _freezer(directories: Mapping[str, str]) -> str:
    for key, directory in directories.items():
        if "freezer" in key.split(","):
            return f"{directory}/freezer.state"
    return ""


def _poll_state(path: str, wanted: str, deadline: float) -> bool:
    # freezer.state has no notification (freezer-subsystem.rst): reading it makes progress.
    while read_text(path).strip() != wanted:
        if time.monotonic() >= deadline:
            return False
        time.sleep(_STEP_S)
    return True


def pids(directories: Iterable[str]) -> list[int]:
    """Return the processes in any of the directories and those below."""
    found: set[int] = set()
    for top in directories:
        for directory, _subdirectories, _files in os.walk(top):
            try:
                text = read_text(f"{directory}/cgroup.procs")
            except OSError as exc:
                if exc.errno in _GONE:
                    continue  # removed while we walked: nobody was in it
                raise
            found.update(int(word) for word in text.split())
    found.discard(0)  # how the kernel shows a process of another PID namespace
    return sorted(found)


def kill(directories: Mapping[str, str], path: str, timeout_s: float) -> None:
    """SIGKILL everything until every hierarchy is empty."""
    deadline = time.monotonic() + timeout_s
    existing = {key: name for key, name in directories.items() if os.path.isdir(name)}
    for attempt in itertools.count():
        if attempt == 1:  # on their way out, which takes processor time before Linux 6.18
            _unthrottle(existing)
        _kill_once(existing)
        # v2 alone is not enough: a child that died half-way through entering is only in v1.
        left = pids(existing.values())
        if not left:
            return
        if time.monotonic() >= deadline:
            raise StateError(
                f"{len(left)} processes survive SIGKILL: {left[:5]}",
                container_id=path,
                status="killing",
            )
        _signal_and_wait(left, existing.values(), deadline)


def _unthrottle(existing: Mapping[str, str]) -> None:
    """Lift the quota of processor time of what is being ended; a ceiling above it holds."""
    for controller, name, value in (("cpu", "cpu.cfs_quota_us", "-1"), ("", "cpu.max", "max")):
        with contextlib.suppress(OSError):  # then it takes longer
            if controller in existing:
                write_text(f"{existing[controller]}/{name}", value)


def _kill_once(existing: Mapping[str, str]) -> None:
    try:
        if "" in existing:
            # cgroup.kill reaches every process at once, forks in flight included (Linux 5.14).
            write_text(f"{existing['']}/cgroup.kill", "1")
    except OSError as exc:
        if exc.errno not in _GONE:  # an older kernel, or already removed: the loop does it
            raise
    try:
        thaw(existing)
    except OSError as exc:
        if exc.errno not in _GONE:
            raise


def _signal_and_wait(found: Sequence[int], directories: Iterable[str], deadline: float) -> None:
    tops = list(directories)
    pidfds = []
    try:
        for pid in found:
            try:
                pidfds.append((pid, open_process(pid)))
            except ProcessLookupError:
                continue  # it has just ended
        # The number may have been reused between the reading and the opening: a pid that is
        # still listed now is the process behind the descriptor, or one just as much inside.
        still_inside = set(pids(tops))
        poller = select.poll()
        wait_s = _GONE_S  # all of them are about to leave
        for pid, pidfd in pidfds:
            if pid not in still_inside:
                continue
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except ProcessLookupError:
                continue
            poller.register(pidfd, select.POLLIN)
            wait_s = _DYING_S
        poller.poll(max(0.0, min(deadline - time.monotonic(), wait_s)) * 1000)
    finally:
        for _pid, pidfd in pidfds:
            os.close(pidfd)


def remove(directories: Mapping[str, str], path: str, timeout_s: float) -> None:
    """Remove every directory, waiting for the last processes to leave."""
    deadline = time.monotonic() + timeout_s
    # v2 first: its events tell when the processes are gone, then v1 needs no waiting.
    for directory in reversed(list(directories.values())):
        while True:
            try:
                os.rmdir(directory)
                break
            except FileNotFoundError:
                break  # removed before: idempotent
            except OSError as exc:
                if exc.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                    raise
                if time.monotonic() >= deadline:
                    raise StateError(
                        f"cannot remove {directory}: processes {pids([directory])[:5]} are in it",
                        container_id=path,
                        status="populated",
                    ) from exc
            _wait_until_empty(directory, deadline)


def _wait_until_empty(directory: str, deadline: float) -> None:
    events = f"{directory}/cgroup.events"
    try:
        if os.path.exists(events) and populated(read_text(events)):
            wait_for_event(events, "populated 0", deadline)
            return
    except OSError as exc:
        if exc.errno not in _GONE:
            raise
    # v1, or a v2 directory whose last process is dead but whose state is still being freed:
    # neither has an event.
    time.sleep(_STEP_S)
