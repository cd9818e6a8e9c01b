"""Landlock: a second layer over the mounts, which a process puts on itself.

plan_ruleset() is pure; restrict() carries it out. Sources: landlock(7); Linux,
include/uapi/linux/landlock.h and Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sandboxruntime import syscalls

__all__ = ["Access", "PathRule", "Ruleset", "Scope", "abi_version", "plan_ruleset", "restrict"]

_CREATE_RULESET_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1
_KNOWN_ABI: Final = 7  # the newest whose rights this module knows; newer ones only add


class Access(enum.IntFlag):
    """LANDLOCK_ACCESS_FS_*."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13  # ABI 2: rename and link between directories
    TRUNCATE = 1 << 14  # ABI 3
    IOCTL_DEV = 1 << 15  # ABI 5


class Scope(enum.IntFlag):
    """LANDLOCK_SCOPE_*: what may not leave the domain (ABI 6)."""

    ABSTRACT_UNIX_SOCKET = 1 << 0
    SIGNAL = 1 << 1


_READ: Final = Access.EXECUTE | Access.READ_FILE | Access.READ_DIR
# Device nodes are made by nobody inside; writing to one is granted beneath /dev only.
_DEVICE_NODES: Final = Access.MAKE_CHAR | Access.MAKE_BLOCK
# Rights that mean something for a file; the kernel refuses a file rule with others (EINVAL).
_FILE_RIGHTS: Final = (
    Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV
)


@dataclass(frozen=True, slots=True)
class PathRule:
    """What is allowed beneath `path`, on top of every other rule above it."""

    path: str
    allowed: Access
    optional: bool = False  # no error if the path does not exist


@dataclass(frozen=True, slots=True)
class Ruleset:
    """A ruleset for one ABI: its attribute structure and its rules."""

    abi: int
    handled: Access
    scoped: Scope
    rules: tuple[PathRule, ...]

    def attr(self) -> bytes:
        """Render struct landlock_ruleset_attr in the size that the ABI knows."""
        if self.abi >= 6:
            return struct.pack("=QQQ", self.handled, 0, self.scoped)
        if self.abi >= 4:
            return struct.pack("=QQ", self.handled, 0)  # handled_access_net: not used
        return struct.pack("=Q", self.handled)


def abi_version() -> int:
    """Return the Landlock ABI of this host; 0 if it is absent or was not enabled at boot."""
    try:
        return syscalls.landlock_create_ruleset(None, _CREATE_RULESET_VERSION)
    except OSError as exc:
        if exc.errno in (errno.ENOSYS, errno.EOPNOTSUPP):  # not built in; not in the lsm= list
            return 0
        raise


def handled_access(abi: int) -> Access:
    """Return every right that `abi` knows and this module uses."""
    handled = Access((1 << 13) - 1)
    for right, since in ((Access.REFER, 2), (Access.TRUNCATE, 3), (Access.IOCTL_DEV, 5)):
        if abi >= since:
            handled |= right
    return handled


def plan_ruleset(abi: int, writable: Sequence[str], *, devices: str = "/dev") -> Ruleset:
    """Plan a ruleset: read and execute everywhere, write beneath `writable`.

    Beneath `devices` existing nodes can be used, ioctl(2) included. /proc stays writable as far
    as its own permissions go: a rule holds for one directory, and /proc/self (comm,
    oom_score_adj) is another one for every process. `abi` must be at least 1.
    """
    handled = handled_access(abi)
    use_device = (
        Access.READ_FILE | Access.WRITE_FILE | Access.READ_DIR | Access.TRUNCATE | Access.IOCTL_DEV
    )
    rules = [
        PathRule("/", _READ & handled),
        PathRule(devices, use_device & handled),
        # TRUNCATE, because a shell's > and Python's "w" open with O_TRUNC.
        PathRule("/proc", (Access.WRITE_FILE | Access.TRUNCATE) & handled, optional=True),
    ]
    rules += [PathRule(path, handled & ~_DEVICE_NODES) for path in writable]
    scoped = Scope.ABSTRACT_UNIX_SOCKET | Scope.SIGNAL if abi >= 6 else Scope(0)
    return Ruleset(abi, handled, scoped, tuple(rules))


def restrict(*, writable: Sequence[str], devices: str = "/dev") -> int:
    """Restrict the calling thread and all its future children; return the ABI used.

    0 means that this host has no Landlock and nothing was restricted: the caller decides
    whether that is enough. Call it with one thread, after the last mount (a restricted process
    cannot mount) and after no_new_privs. Raises OSError: ENOENT for a missing path in
    `writable`, EPERM without no_new_privs.
    """
    abi = min(abi_version(), _KNOWN_ABI)
    if abi == 0:
        return 0
    ruleset = plan_ruleset(abi, writable, devices=devices)
    ruleset_fd = syscalls.landlock_create_ruleset(ruleset.attr(), 0)
    try:
        for rule in ruleset.rules:
            _add(ruleset_fd, rule)
        syscalls.landlock_restrict_self(ruleset_fd, 0)
    finally:
        os.close(ruleset_fd)
    return abi


def _add(ruleset_fd: int, rule: PathRule) -> None:
    try:
        path_fd = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        if rule.optional:
            return
        raise
    try:
        allowed = rule.allowed
        if not stat.S_ISDIR(os.fstat(path_fd).st_mode):
            allowed &= _FILE_RIGHTS
        # struct landlock_path_beneath_attr, packed: u64 allowed_access, s32 parent_fd.
        attr = struct.pack("=Qi", allowed, path_fd)
        syscalls.landlock_add_rule(ruleset_fd, _RULE_PATH_BENEATH, attr)
    finally:
        os.close(path_fd)
