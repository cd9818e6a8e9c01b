"""Acting on the file system with a user's rights, and getting one's own back."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

from sandboxruntime import syscalls
from sandboxruntime.spec import Credentials

__all__ = ["acting_as"]


@contextlib.contextmanager
def acting_as(credentials: Credentials) -> Iterator[None]:
    """Act on the file system with a user's rights (setfsuid(2)): only in a process with one thread.

    Setting fsuid to a non-zero id drops the file system capabilities from the effective set.
    """
    groups = os.getgroups()
    try:
        os.setgroups(credentials.groups)
        syscalls.setfsgid(credentials.gid)
        syscalls.setfsuid(credentials.uid)
        if syscalls.setfsuid(credentials.uid) != credentials.uid:
            raise PermissionError(errno.EPERM, "setfsuid did not take effect")
        yield
    finally:
        _take_back(syscalls.setfsuid, 0)
        _take_back(syscalls.setfsgid, 0)
        _take_back(os.setgroups, groups)


def _take_back(call: Callable[[Any], object], own: object) -> None:
    """Be oneself again. A launcher that cannot must end: the next one adopts its containers."""
    for _ in range(3):
        with contextlib.suppress(OSError):
            call(own)
            return
    raise SystemExit(f"cannot get back the launcher's own rights: {call.__name__}({own})")
