"""The interpreter that enters containers cannot be written to from there.

A process that sets a container up, or joins one, is this program; whoever is root inside may get at
it through /proc/PID/exe, by having it execute `/proc/self/exe` in the program's place, and would
write to the host's file (CVE-2019-5736). So it runs from a read-only mount of itself that is
attached nowhere: nobody can make that writable, and writing through it is EROFS.
"""

from __future__ import annotations

import os
import sys
from typing import Final

from sandboxruntime import syscalls
from sandboxruntime.errors import HostError
from sandboxruntime.syscalls import MountAttr, OpenTreeFlag

__all__ = ["seal"]

_SEALED: Final = "SANDBOXRUNTIME_SEALED"
_SELF: Final = "/proc/self/exe"


def seal() -> None:
    """Return when this process runs from a read-only mount; execute it again where it does not.

    Raises HostError when that does not help, OSError without privilege.
    """
    again = os.environ.pop(_SEALED, None)
    if os.statvfs(_SELF).f_flag & os.ST_RDONLY:
        return
    if again:
        raise HostError(f"{sys.executable} cannot be executed read-only", feature="sealing")
    flags = OpenTreeFlag.CLONE | OpenTreeFlag.CLOEXEC
    fd = syscalls.open_tree(syscalls.AT_FDCWD, os.path.realpath(_SELF), flags)
    syscalls.mount_setattr(fd, "", attr_set=MountAttr.RDONLY)
    os.execve(fd, sys.orig_argv, {**os.environ, _SEALED: "1"})
