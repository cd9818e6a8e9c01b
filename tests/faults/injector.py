"""A launcher in which the k-th privileged operation fails: the counter, and the wrappers.

Privileged operations are the functions of sandboxruntime.syscalls, and those of `os` that the
runtime changes the host or itself with, cgroup files and /proc files among them. The counter is a
shared mapping, so that k counts across the processes that the launcher forks; it is gone at exec.
"""

from __future__ import annotations

import functools
import inspect
import mmap
import os
import struct
import sys
from pathlib import Path
from types import FrameType
from typing import Any

VARIABLE = "SANDBOXKERNEL_TEST_FAULTS"  # the file behind the shared counter
OFF, COUNT_ONLY = -1, 0
OS_OPERATIONS = (
    "chdir", "chmod", "chown", "dup2", "execve", "execvpe", "fchdir", "fork", "memfd_create",
    "mkdir", "mknod", "open", "pidfd_open", "rmdir", "setgroups", "setresgid", "setresuid",
    "setsid", "symlink", "umask", "write",
)  # fmt: skip
_HEAD = struct.Struct("4i")  # wanted, errno, seen, length of the label
_SIZE = 4096
# No system call of its own, or none that has an error.
_PURE = ("machine",)


class Switch:
    """The shared memory: which operation fails, with what, and how many there were."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, _SIZE)
            self._memory = mmap.mmap(fd, _SIZE)
        finally:
            os.close(fd)
        self._state = (OFF, 0, 0, 0)

    def arm(self, wanted: int, code: int = 0) -> None:
        """Let operation `wanted` fail (counted from 1); COUNT_ONLY lets none; OFF ends counting."""
        _HEAD.pack_into(self._memory, 0, wanted, code, 0, 0)

    def disarm(self) -> tuple[int, str]:
        """How many operations there were, and which one has failed ("" if none)."""
        _, _, seen, length = _HEAD.unpack_from(self._memory)
        label = self._memory[_HEAD.size : _HEAD.size + length].decode()
        self.arm(OFF)
        return seen, label

    def step(self, label: str) -> None:
        """One operation; maybe the one that fails."""
        wanted, code, seen, length = _HEAD.unpack_from(self._memory)
        if wanted == OFF:
            return
        seen += 1
        if seen == wanted and not length:
            data = label.encode()[:1000]
            self._memory[_HEAD.size : _HEAD.size + len(data)] = data
            _HEAD.pack_into(self._memory, 0, wanted, code, seen, len(data))
            raise OSError(code, f"injected into {label}: {os.strerror(code)}")
        _HEAD.pack_into(self._memory, 0, wanted, code, seen, length)


def _wrap(switch: Switch, owner: Any, name: str) -> None:
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        module = frame.f_globals.get("__name__", "")
        # `os` has other users in this process; system calls may be an ExitStack's callbacks.
        if owner is not os or module.startswith("sandboxruntime"):
            switch.step(f"{owner.__name__.rpartition('.')[2]}.{name} in {_place(frame)}")
        return inner(*args, **kwargs)

    setattr(owner, name, outer)


def _place(frame: FrameType | None) -> str:
    """The innermost functions of the runtime, up to the first that is no mere helper's."""
    names: list[str] = []
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if not name.startswith("sandboxruntime"):
            frame = frame.f_back
            continue
        module = name.removeprefix("sandboxruntime.")
        names.append(f"{module}.{frame.f_code.co_name}")
        if module not in ("cgroup.files", "namespaces", "cgroup.lifecycle"):
            break
        frame = frame.f_back
    return " < ".join(names)


def install() -> None:
    """In the launcher: put the switch before every privileged operation."""
    from sandboxruntime import rootfs, syscalls

    switch = Switch(Path(os.environ[VARIABLE]))
    for name, value in list(vars(syscalls).items()):
        own = inspect.isfunction(value) and value.__module__ == syscalls.__name__
        if own and name[0] != "_" and name not in _PURE:
            _wrap(switch, syscalls, name)
    for name in OS_OPERATIONS:
        _wrap(switch, os, name)
    # Every start makes its user namespaces anew, as the first one of a user does.
    rootfs.NAMESPACES_MAX = 1
