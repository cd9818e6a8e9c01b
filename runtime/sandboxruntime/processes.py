"""Descriptors of processes, pidfd_open(2): they mean the process even when its pid does not."""

from __future__ import annotations

import errno
import os

__all__ = ["open_process"]


def open_process(pid: int) -> int:
    """A pidfd of a process, which the caller owns. ProcessLookupError once it has been reaped.

    Linux before 6.16 says EINVAL, not ESRCH, for a leader that has been reaped while its group, its
    session or a look-up still holds the number; and for a number that is a thread's, which is
    ENOENT since. No process has it.
    """
    try:
        return os.pidfd_open(pid)
    except OSError as exc:
        if exc.errno in (errno.EINVAL, errno.ENOENT) and pid > 0:
            raise ProcessLookupError(errno.ESRCH, f"process {pid} has ended") from exc
        raise
