"""Reading and writing cgroup control files. Effects."""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Sequence

from sandboxruntime.cgroup.layout import Layout
from sandboxruntime.cgroup.limits import Write, matches
from sandboxruntime.errors import HostError

__all__ = ["apply_writes", "open_file", "populated", "read_text", "wait_for_event", "write_text"]

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_READ_BYTES = 1 << 16

_HINTS = {
    errno.EACCES: "run the daemon as root, outside any container that mounts cgroups read-only",
    errno.EPERM: "run the daemon as root, outside any container that mounts cgroups read-only",
    errno.EROFS: "mount the cgroup file system read-write",
    errno.EBUSY: "the cgroup holds processes of its own, or uses more than the new limit",
    errno.EINVAL: "the value is outside what the kernel or a parent cgroup allows",
    errno.ENODEV: "io limits need the number of a whole disk, not of a partition",
}


def open_file(path: str, flags: int) -> int:
    """Open a control file, close-on-exec. The caller owns the descriptor."""
    return os.open(path, flags | os.O_CLOEXEC)


def read_text(path: str) -> str:
    """Read a whole control file. Raises OSError."""
    fd = open_file(path, os.O_RDONLY)
    try:
        chunks = []
        while chunk := os.read(fd, _READ_BYTES):
            chunks.append(chunk)
    finally:
        os.close(fd)
    return b"".join(chunks).decode("ascii", errors="replace")


def write_text(path: str, value: str) -> None:
    """Write a control file with exactly one write(2). Raises OSError.

    Never through a buffered file: its error would surface in close() and be lost.
    """
    fd = open_file(path, os.O_WRONLY)
    try:
        os.write(fd, value.encode("ascii"))
    finally:
        os.close(fd)


def apply_writes(layout: Layout, path: str, writes: Sequence[Write]) -> None:
    """Make every write in cgroup `path` and read it back.

    Raises HostError naming the file if it is missing, refused, or shows another value after.
    """
    for write in writes:
        directory = layout.directory(write.controller, path)
        _apply(write, f"{directory}/{write.file}", f"{directory}/{write.read_file or write.file}")


def _apply(write: Write, path: str, read_path: str) -> None:
    feature = f"cgroup:{write.file}"
    problem: OSError | None = None
    try:
        write_text(path, write.value)
    except FileNotFoundError as exc:
        if write.optional:
            return
        raise HostError(
            f"cannot limit: {path} is missing", feature=feature, hint=write.hint
        ) from exc
    except OSError as exc:
        # A kernel that refuses to write what is already so (use_hierarchy with children) has
        # still given what was asked; the comparison below decides.
        problem = exc
    got = read_text(read_path)
    if matches(write, got, _PAGE_BYTES):
        return
    if problem is not None:
        raise HostError(
            f"cannot write {write.value!r} to {path}: {problem.strerror}",
            feature=feature,
            hint=_HINTS.get(problem.errno or 0, write.hint),
        ) from problem
    raise HostError(
        f"{path} shows {got.strip()!r} after {write.value!r} was written to it",
        feature=feature,
        hint=write.hint,
    )


def populated(events: str) -> bool:
    """Whether the text of a v2 cgroup.events says that processes are left."""
    return "populated 1" in events.splitlines()


def wait_for_event(path: str, line: str, deadline: float) -> bool:
    """Wait until the v2 events file `path` contains `line`; False once time.monotonic() passes.

    The kernel raises POLLPRI when an events file changes (cgroup-v2.rst, cgroup.events).
    """
    fd = open_file(path, os.O_RDONLY)
    try:
        poller = select.poll()
        poller.register(fd, select.POLLPRI)
        while True:
            if line in os.pread(fd, _READ_BYTES, 0).decode("ascii").splitlines():
                return True
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            poller.poll(remaining * 1000)
    finally:
        os.close(fd)
