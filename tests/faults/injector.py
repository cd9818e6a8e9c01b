"""Processes in which one chosen privileged operation fails: the switch, and the wrappers.

Privileged operations are the functions of sandboxruntime.syscalls, and those of Python's that the
runtime changes the host or itself with, cgroup files and /proc files among them. The switch is a
shared mapping, so that it reaches the processes that are forked; it is gone at exec. Processes
that set a container up side by side are told apart by their generation: an operation is the n-th
of its name and place in a generation, whatever the others do meanwhile.

Also executed inside of a zygote, where nothing else of the tests is: standard library only.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import mmap
import os
import shutil  # before the wrappers: it asks which functions of `os` take descriptors
import struct
import sys
from types import FrameType
from typing import Any, NamedTuple

VARIABLE = "SANDBOXKERNEL_TEST_FAULTS"  # the file behind the switch
# Not among them: SIGKILL for a child of one's own, which has no error (kill(2)).
OPERATIONS = {
    "os": (
        "chdir", "chmod", "chown", "dup", "dup2", "eventfd", "execve", "execvpe", "fchdir", "fork",
        "memfd_create", "mkdir", "mknod", "open", "pidfd_open", "pipe2", "rmdir",
        "setgroups", "setresgid", "setresuid", "setsid", "symlink", "umask", "write",
    ),
    "fcntl": ("fcntl", "ioctl"),
    "resource": ("setrlimit",),
    "socket": ("sethostname", "socketpair"),
}  # fmt: skip
LAUNCHER, ZYGOTE = 0, 4  # the generations of these two; those they fork have the next ones
NAMES = ("launcher", "pid 1", "program", "?", "zygote", "pid 1", "kernel", "?")
_BIRTHS = ("clone3", "fork")
# No system call of its own, or none that has an error.
_PURE = ("machine",)
# Modules and functions of which it does not matter that they act, but for whom.
_HELPERS = ("cgroup.files", "namespaces", "cgroup.lifecycle", "processes", "init.close_all_but")
_OFF, _RECORD, _ARMED = 0, 1, 2
# mode, generation, occurrence, errno, fired, bytes of the wanted label, whether a guest ran
_HEAD = struct.Struct("7i")
_GUEST_RAN = 24  # where that word is
_LABEL, _LABEL_MAX = 64, 1000
_LOG, _LOG_MAX = 4096, 256 * 1024  # of each generation: bytes, then the text
SIZE = _LOG + len(NAMES) * _LOG_MAX


class Operation(NamedTuple):
    """One operation: the `occurrence`th of its label in its generation, counted from 1."""

    generation: int
    label: str
    occurrence: int

    def __str__(self) -> str:
        which = f" #{self.occurrence}" if self.occurrence > 1 else ""
        return f"{NAMES[self.generation]}: {self.label}{which}"


class Switch:
    """The shared memory: which operation fails, with what, and which ones there were."""

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, SIZE)

    def record(self) -> None:
        """Write down the operations to come; recorded() returns them."""
        for generation in range(len(NAMES)):
            struct.pack_into("i", self._memory, _LOG + generation * _LOG_MAX, 0)
        self._set(_RECORD)

    def arm(self, operation: Operation, code: int) -> None:
        """Let one operation fail, once."""
        label = operation.label.encode()[:_LABEL_MAX]
        self._memory[_LABEL : _LABEL + len(label)] = label
        self._set(_ARMED, operation.generation, operation.occurrence, code, 0, len(label))

    def disarm(self) -> bool:
        """No operation fails or is written down any more; whether one has failed."""
        fired = self.has_fired()
        self._set(_OFF)
        return fired

    def has_fired(self) -> bool:
        """Whether the operation has failed."""
        return bool(_HEAD.unpack_from(self._memory)[4])

    def guest_ran(self) -> bool:
        """Whether the program of a zygote has been executed since this was asked last."""
        (ran,) = struct.unpack_from("i", self._memory, _GUEST_RAN)
        struct.pack_into("i", self._memory, _GUEST_RAN, 0)
        return bool(ran)

    def note_guest(self) -> None:
        """The program of a zygote runs."""
        struct.pack_into("i", self._memory, _GUEST_RAN, 1)

    def recorded(self) -> list[Operation]:
        """The operations that were written down, by generation and in their order."""
        found = []
        for generation in range(len(NAMES)):
            start = _LOG + generation * _LOG_MAX
            (length,) = struct.unpack_from("i", self._memory, start)
            counts: dict[str, int] = {}
            for label in self._memory[start + 4 : start + 4 + length].decode().splitlines():
                counts[label] = counts.get(label, 0) + 1
                found.append(Operation(generation, label, counts[label]))
        return found

    def step(self, generation: int, name: str, frame: FrameType) -> None:
        """One operation; maybe the one that fails."""
        mode, wanted, occurrence, code, fired, length, _ = _HEAD.unpack_from(self._memory)
        if mode == _RECORD:
            self._note(generation, f"{name} in {_place(frame)}")
        if mode != _ARMED or fired or generation != wanted:
            return
        label = f"{name} in {_place(frame)}"
        if label.encode()[:_LABEL_MAX] != self._memory[_LABEL : _LABEL + length]:
            return
        seen = self._count(generation)
        if seen == occurrence:
            struct.pack_into("i", self._memory, 16, 1)
            raise OSError(code, f"injected into {label}: {os.strerror(code)}")

    def _count(self, generation: int) -> int:
        # Shared by the processes of a generation, of which one at a time does what has this label.
        start = _LOG + generation * _LOG_MAX
        seen: int = struct.unpack_from("i", self._memory, start)[0] + 1
        struct.pack_into("i", self._memory, start, seen)
        return seen

    def _note(self, generation: int, label: str) -> None:
        start = _LOG + generation * _LOG_MAX
        (length,) = struct.unpack_from("i", self._memory, start)
        data = label.encode()[:_LABEL_MAX] + b"\n"
        if length + len(data) > _LOG_MAX - 4:
            raise AssertionError("too many operations to write down")
        self._memory[start + 4 + length : start + 4 + length + len(data)] = data
        struct.pack_into("i", self._memory, start, length + len(data))

    def _set(self, *words: int) -> None:
        if words[0] == _ARMED:
            for generation in range(len(NAMES)):
                struct.pack_into("i", self._memory, _LOG + generation * _LOG_MAX, 0)
        (ran,) = struct.unpack_from("i", self._memory, _GUEST_RAN)
        padded = (*words, *[0] * (6 - len(words)), ran)
        _HEAD.pack_into(self._memory, 0, *padded)


def _place(frame: FrameType | None) -> str:
    """The innermost functions of the runtime, up to the first that is no mere helper's."""
    names: list[str] = []
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if not _is_ours(name) or frame.f_code.co_name[0] == "<":  # a comprehension's
            frame = frame.f_back
            continue
        module = name.removeprefix("sandboxruntime.").replace("__main__", "guest.zygote")
        names.append(f"{module}.{frame.f_code.co_name}")
        if module not in _HELPERS and names[-1] not in _HELPERS:
            break
        frame = frame.f_back
    return " < ".join(names)


def _is_ours(module: str) -> bool:
    return module.startswith("sandboxruntime") or module == "__main__"


def _wrap(switch: Switch, born: list[int], owner: Any, name: str) -> None:
    inner = getattr(owner, name)
    label = f"{owner.__name__.rpartition('.')[2]}.{name}"

    @functools.wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        # Modules of Python's have other users; system calls may be an ExitStack's callbacks.
        if owner.__name__ not in OPERATIONS or _is_ours(frame.f_globals.get("__name__", "")):
            switch.step(born[0], label, frame)
        result = inner(*args, **kwargs)
        if name in _BIRTHS and result in (0, (0, -1)):
            born[0] += 1
        return result

    setattr(owner, name, outer)


def install(switch: Switch, generation: int) -> None:
    """In this process: put the switch before every privileged operation."""
    from sandboxruntime import syscalls

    born = [generation]
    for name, value in list(vars(syscalls).items()):
        own = inspect.isfunction(value) and value.__module__ == syscalls.__name__
        if own and name[0] != "_" and name not in _PURE:
            _wrap(switch, born, syscalls, name)
    assert shutil.rmtree  # it has looked at `os` as it is
    for module, names in OPERATIONS.items():
        for name in names:
            _wrap(switch, born, importlib.import_module(module), name)


def in_launcher(path: str) -> None:
    """In the launcher, before it starts."""
    from sandboxruntime import container

    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    install(Switch(fd), LAUNCHER)
    os.close(fd)
    create = container.create

    @functools.wraps(create)
    def anew(host: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return (yield from create(host, *args, **kwargs))
        finally:  # every start makes its user namespaces, as the first one of a user does
            while host.mounts._namespaces:
                os.close(host.mounts._namespaces.popitem()[1])

    container.create = anew


def in_zygote(fd: int) -> None:
    """In the program of a zygote, before it starts."""
    switch = Switch(fd)
    os.close(fd)
    switch.note_guest()
    install(switch, ZYGOTE)
