"""Giving up every capability, and proving it. Effects. Source: capabilities(7).

Order matters and is the caller's job: dropping the bounding set and locking the securebits need
CAP_SETPCAP, changing uid and gid needs CAP_SETUID and CAP_SETGID. So:

    drop_bounding(); lock_securebits()
    setgroups, setresgid, setresuid
    clear()

lock_securebits() sets SECBIT_NO_SETUID_FIXUP: from then on setresuid(2) to an ordinary user
takes no capability away, and clear() is not optional.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from sandboxruntime import syscalls

__all__ = [
    "CAPABILITY_SETS",
    "SECUREBITS",
    "clear",
    "drop_all",
    "drop_bounding",
    "last_capability",
    "lock_securebits",
    "nonzero_sets",
]

# include/uapi/linux/prctl.h
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_GET_SECUREBITS: Final = 27
_PR_SET_SECUREBITS: Final = 28
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

# include/uapi/linux/securebits.h; each bit is followed by its lock.
_NOROOT: Final = 1 << 0
_NO_SETUID_FIXUP: Final = 1 << 2
_KEEP_CAPS: Final = 1 << 4
_NO_CAP_AMBIENT_RAISE: Final = 1 << 6
SECUREBITS: Final = (_NOROOT | _NO_SETUID_FIXUP | _NO_CAP_AMBIENT_RAISE) | (
    _NOROOT | _NO_SETUID_FIXUP | _KEEP_CAPS | _NO_CAP_AMBIENT_RAISE
) << 1

CAPABILITY_SETS: Final = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def last_capability() -> int:
    """Return the highest capability number of this host."""
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        return int(file.read())


def drop_bounding() -> None:
    """Empty the bounding set: no execve(2) can ever gain a capability again.

    Needs CAP_SETPCAP unless it is empty already. Raises OSError(EPERM).
    """
    for capability in range(last_capability() + 1):
        if syscalls.prctl(_PR_CAPBSET_READ, capability):
            syscalls.prctl(_PR_CAPBSET_DROP, capability)


def lock_securebits() -> None:
    """Make uid 0 an ordinary user for good. Needs CAP_SETPCAP; raises OSError(EPERM)."""
    syscalls.prctl(_PR_SET_SECUREBITS, SECUREBITS)
    _demand(syscalls.prctl(_PR_GET_SECUREBITS) == SECUREBITS, "securebits are not as set")


def clear() -> None:
    """Empty the ambient, effective, permitted and inheritable sets of this thread, and check.

    Raises OSError(EPERM) if /proc/self/status shows any capability after that, the bounding
    set included.
    """
    syscalls.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    syscalls.capset(0, 0, 0)
    with open("/proc/thread-self/status", encoding="utf-8", errors="replace", newline="\n") as file:
        left = nonzero_sets(file.read())
    _demand(not left, f"capabilities are left in {', '.join(left)}")


def drop_all() -> None:
    """Drop every capability without a change of uid. Needs CAP_SETPCAP. Raises OSError."""
    drop_bounding()
    lock_securebits()
    clear()


def nonzero_sets(proc_status: str) -> list[str]:
    """Return the capability sets that /proc/PID/status does not show as empty. Pure.

    A set that the text does not mention counts as not empty.
    """
    fields = dict(line.split(":", 1) for line in proc_status.split("\n") if ":" in line)
    return [name for name in CAPABILITY_SETS if int(fields.get(name, "1"), 16) != 0]


def _demand(condition: bool, message: str) -> None:
    if not condition:
        raise PermissionError(errno.EPERM, f"{message}: {os.strerror(errno.EPERM)}")
