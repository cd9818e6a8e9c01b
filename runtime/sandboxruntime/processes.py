"""Descriptors of processes, pidfd_open(2): they mean the process even when its pid does not."""

from __future__ import annotations

import errno
import os

__all__ = ["open_process"]


def open_process(pid: int) -> int:
    """A pidfd of a process, which the caller owns. Raises ProcessLookupError once it has ended.

    Linux before 6.16 says EINVAL, not ESRCH, for a leader that has been reaped while its group,
    its session or a look-up still holds the number: no process has it any more.
    """
    try:
        return os.pidfd_open(pid)
    except OSError as exc:
        if exc.errno == errno.EINVAL and pid > 0:
            raise ProcessLookupError(errno.ESRCH, f"process {pid} has ended") from exc
        raise
