"""The trials behind host.py. Effects: each runs in a forked child, or undoes what it did.

Every function returns a short detail if the feature works and raises OSError or ContainerError
if it does not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
import signal
import struct
from collections.abc import Callable, Iterator

from sandboxruntime import landlock, seccomp, syscalls
from sandboxruntime.syscalls import CloneFlag, MountAttr, Resolve

__all__ = [
    "close_range",
    "detached_mount",
    "idmap_directory",
    "idmap_tmpfs",
    "in_child",
    "install_filter",
    "namespace",
    "no_new_privs",
    "nosymfollow_mount",
    "openat2",
    "overlay",
    "pidfd",
    "restrict_itself",
]

_PR_SET_NO_NEW_PRIVS = 38
_PR_GET_NO_NEW_PRIVS = 39
_SCRATCH = "/tmp"  # covered by a mount that only the probe sees
_ANSWER_BYTES = 4096
_TIMEOUT_MS = 10_000


def in_child(trial: Callable[[], object]) -> str:
    """Run `trial` in a forked child; raise its OSError here. The child never returns."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _answer(trial, write_fd)
    os.close(write_fd)
    try:
        poller = select.poll()
        poller.register(read_fd, select.POLLIN)
        if not poller.poll(_TIMEOUT_MS):
            os.kill(pid, signal.SIGKILL)  # our own child, not yet reaped: the number is its own
        answer = os.read(read_fd, _ANSWER_BYTES)
    finally:
        os.close(read_fd)
        os.waitpid(pid, 0)
    if not answer:
        raise OSError(errno.EIO, "the probe died")
    code, detail = struct.unpack_from("=i", answer)[0], answer[4:].decode(errors="replace")
    if code:
        raise OSError(code, detail)
    return detail


def _answer(trial: Callable[[], object], write_fd: int) -> None:
    try:
        result = trial()
        reply = struct.pack("=i", 0) + (result if isinstance(result, str) else "works").encode()
    except OSError as exc:
        text = exc.strerror or str(exc)
        reply = struct.pack("=i", exc.errno or errno.EIO) + text.encode()
    except BaseException as exc:  # the child must not run its parent's code
        reply = struct.pack("=i", errno.EIO) + repr(exc).encode()
    os.write(write_fd, reply[:_ANSWER_BYTES])
    os._exit(0)


def namespace(name: str) -> str:
    """Make one namespace, as root directly, else inside a user namespace."""

    def trial() -> None:
        flag = CloneFlag[name]
        if os.geteuid() != 0 and flag is not CloneFlag.NEWUSER:
            syscalls.unshare(CloneFlag.NEWUSER)
        syscalls.unshare(flag)

    return in_child(trial)


def _own_mounts() -> None:
    """Give this child a mount namespace, so that nothing it does is seen or stays."""
    if os.geteuid() != 0:
        uid, gid = os.geteuid(), os.getegid()
        syscalls.unshare(CloneFlag.NEWUSER)
        # A file system refuses to make files for an id it cannot store (EOVERFLOW).
        for file, text in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {uid} 1"),
            ("gid_map", f"0 {gid} 1"),
        ):
            _write(f"/proc/self/{file}", text)
    syscalls.unshare(CloneFlag.NEWNS)
    syscalls.mount(None, "/", None, syscalls.MountFlag.REC | syscalls.MountFlag.PRIVATE)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _tmpfs(attributes: int = 0) -> int:
    fs_fd = syscalls.fsopen("tmpfs")
    syscalls.fsconfig_create(fs_fd)
    mount_fd = syscalls.fsmount(fs_fd, MountAttr(attributes))
    os.close(fs_fd)
    return mount_fd


def detached_mount() -> None:
    """Make a tmpfs that is attached nowhere, and use it through its descriptor."""
    _own_mounts()
    os.mkdir("x", dir_fd=_tmpfs())


def nosymfollow_mount() -> None:
    """Check that a symlink in a nosymfollow mount is not followed."""
    _own_mounts()
    mount_fd = _tmpfs(MountAttr.NOSYMFOLLOW)
    os.symlink("/dev/null", "link", dir_fd=mount_fd)
    try:
        os.close(os.open("link", os.O_RDONLY, dir_fd=mount_fd))
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            return
        raise
    raise OSError(errno.EOPNOTSUPP, "a symlink was followed")


def overlay(how: str) -> str:
    """Make an overlay of two layers and an upper directory, and read and write through it.

    `how`: "lowerdir" gives the layers as one string, "lowerdir+" one by one, "fd" as
    descriptors.
    """
    _own_mounts()
    store_fd = _tmpfs()
    for name in ("low1", "low2", "up", "work"):
        os.mkdir(name, dir_fd=store_fd)
    os.close(os.open("low2/f", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=store_fd))
    # Layers by name need an attached place; in this private mount namespace any will do.
    syscalls.move_mount(store_fd, "", -100, _SCRATCH, syscalls.MoveMountFlag.F_EMPTY_PATH)
    os.chdir(_SCRATCH)
    fs_fd = syscalls.fsopen("overlay")
    if how == "fd":
        for key, name in (("lowerdir+", "low1"), ("lowerdir+", "low2"),
                          ("upperdir", "up"), ("workdir", "work")):  # fmt: skip
            layer_fd = os.open(name, os.O_PATH | os.O_CLOEXEC)
            syscalls.fsconfig_set_fd(fs_fd, key, layer_fd)
    else:
        if how == "lowerdir+":
            syscalls.fsconfig_string(fs_fd, "lowerdir+", "low1")
            syscalls.fsconfig_string(fs_fd, "lowerdir+", "low2")
        else:
            syscalls.fsconfig_string(fs_fd, "lowerdir", "low1:low2")
        syscalls.fsconfig_string(fs_fd, "upperdir", "up")
        syscalls.fsconfig_string(fs_fd, "workdir", "work")
    syscalls.fsconfig_create(fs_fd)
    mount_fd = syscalls.fsmount(fs_fd)
    os.stat("f", dir_fd=mount_fd)
    os.unlink("f", dir_fd=mount_fd)
    os.mkdir("d", dir_fd=mount_fd)
    return "layers, changes and deletions work"


@contextlib.contextmanager
def _user_namespace(inside: int, outside: int) -> Iterator[int]:
    """Yield a descriptor of a user namespace that maps one id; its only process is ours."""
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    hold_read, hold_write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.close(hold_write)
            syscalls.unshare(CloneFlag.NEWUSER)
            os.write(ready_write, b"1")
            os.read(hold_read, 1)
        finally:
            os._exit(0)
    for fd in (ready_write, hold_read):
        os.close(fd)
    try:
        if not os.read(ready_read, 1):
            raise PermissionError(errno.EPERM, "user namespaces are not allowed")
        for file in ("uid_map", "gid_map"):
            _write(f"/proc/{pid}/{file}", f"{inside} {outside} 1")
        yield os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(hold_write)
        os.close(ready_read)
        os.waitpid(pid, 0)


def idmap_tmpfs() -> str:
    """Give a tmpfs an id map, and see its owner through it."""
    _own_mounts()
    return _idmap(_tmpfs())


def idmap_directory(directory: str) -> str:
    """Give a detached copy of the mount of `directory` an id map."""
    _own_mounts()
    flags = syscalls.OpenTreeFlag.CLONE | syscalls.OpenTreeFlag.CLOEXEC
    return _idmap(syscalls.open_tree(-100, directory, flags))


def _idmap(mount_fd: int) -> str:
    owner, mapped = os.fstat(mount_fd).st_uid, 100_000
    with _user_namespace(owner, mapped) as userns_fd:
        syscalls.mount_setattr(mount_fd, "", attr_set=MountAttr.IDMAP, userns_fd=userns_fd)
    shown = os.stat(".", dir_fd=mount_fd).st_uid
    if shown != mapped:
        raise OSError(errno.EOPNOTSUPP, f"uid {owner} shows as {shown}, not as {mapped}")
    return "owners are mapped"


def no_new_privs() -> None:
    """Set no_new_privs and read it back."""
    syscalls.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if syscalls.prctl(_PR_GET_NO_NEW_PRIVS) != 1:
        raise OSError(errno.EOPNOTSUPP, "no_new_privs did not stay")


def install_filter(program: bytes) -> None:
    """Install a filter and check that it answers."""
    syscalls.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install(program)
    try:
        syscalls.unshare(CloneFlag.NEWUSER)
    except PermissionError:
        return
    raise OSError(errno.EOPNOTSUPP, "the filter does not answer")


def restrict_itself() -> None:
    """Restrict this child with Landlock and check that it holds."""
    syscalls.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    landlock.restrict(writable=[])
    os.write(write_fd, b"1")  # what is open stays usable
    os.read(read_fd, 1)
    try:
        os.mkdir(f"/sandboxkernel-probe-{secrets.token_hex(4)}")
    except PermissionError:
        return
    except OSError as exc:
        if exc.errno == errno.EROFS:  # a read-only root hides the answer
            return
        raise
    raise OSError(errno.EOPNOTSUPP, "Landlock does not hold")


def pidfd() -> str:
    """Signal and reap a child through its pidfd."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    try:
        fd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOWAIT)
        finally:
            os.close(fd)
    finally:
        os.kill(pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
        os.waitpid(pid, 0)
    return "open, signal and wait work"


def openat2() -> None:
    """Check that a path cannot leave its directory."""
    directory_fd = os.open("/proc/self", os.O_PATH | os.O_CLOEXEC)
    os.close(syscalls.openat2(directory_fd, "status", os.O_RDONLY, resolve=Resolve.BENEATH))
    try:
        syscalls.openat2(directory_fd, "../version", os.O_RDONLY, resolve=Resolve.BENEATH)
    except OSError as exc:
        if exc.errno == errno.EXDEV:
            return
        raise
    raise OSError(errno.EOPNOTSUPP, "a path left its directory")


def close_range() -> None:
    """Close one descriptor by range."""
    fd = os.dup(0) if _is_open(0) else os.open("/dev/null", os.O_RDONLY)
    syscalls.close_range(fd, fd)
    if _is_open(fd):
        raise OSError(errno.EOPNOTSUPP, "a descriptor stayed open")


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError as exc:
        if exc.errno == errno.EBADF:
            return False
        raise
    return True
