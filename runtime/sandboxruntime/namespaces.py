"""Namespaces: id maps written from outside, holders for idmapped mounts, the root, the loopback."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import struct
from collections.abc import Iterable

from sandboxruntime import syscalls
from sandboxruntime.channel import recv_message, send_message
from sandboxruntime.spec import IdMapping
from sandboxruntime.syscalls import CloneFlag, OpenTreeFlag, UmountFlag

__all__ = [
    "NAMESPACES",
    "bring_up_loopback",
    "clone_root",
    "end_with_parent",
    "make_user_namespace",
    "pivot_to",
    "render_map",
    "write_id_maps",
    "write_kernel_file",
]

_PR_SET_PDEATHSIG = 1
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1

# Of every container, made in one clone3(2); the cgroup namespace follows when it is in its cgroup.
NAMESPACES = (
    CloneFlag.NEWUSER
    | CloneFlag.NEWNS
    | CloneFlag.NEWPID
    | CloneFlag.NEWIPC
    | CloneFlag.NEWUTS
    | CloneFlag.NEWNET
)


def render_map(mappings: Iterable[IdMapping]) -> str:
    """The text of uid_map or gid_map (user_namespaces(7)). Pure."""
    return "".join(f"{m.container_id} {m.host_id} {m.size}\n" for m in mappings)


def write_kernel_file(path: str, text: str) -> None:
    """Write a /proc or cgroup file in one write(2), so that a refusal is an OSError here.

    A buffered write would report success and lose the error at close.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def write_id_maps(
    pid: int, uid_mappings: Iterable[IdMapping], gid_mappings: Iterable[IdMapping]
) -> None:
    """Write a child's maps.

    setgroups is denied, so that groups can never be shed (CVE-2014-8989).
    """
    write_kernel_file(f"/proc/{pid}/setgroups", "deny")
    write_kernel_file(f"/proc/{pid}/uid_map", render_map(uid_mappings))
    write_kernel_file(f"/proc/{pid}/gid_map", render_map(gid_mappings))


def end_with_parent(parent: int) -> None:
    """In a child of `parent`: end when that ends, or now if it has (PR_SET_PDEATHSIG, prctl(2))."""
    syscalls.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before that, and nobody would tell us
        os._exit(127)


def make_user_namespace(
    uid_mappings: Iterable[IdMapping], gid_mappings: Iterable[IdMapping]
) -> int:
    """Make a user namespace without a process and return its descriptor.

    Idmapped mounts take their map from a user namespace (mount_setattr(2)). The descriptor
    keeps it alive; the caller owns it.
    """
    parent = os.getpid()
    pid, pidfd = syscalls.clone3(CloneFlag.NEWUSER)
    if pid == 0:
        try:
            end_with_parent(parent)
            signal.pause()
        finally:
            os._exit(0)  # whatever happens: the caller goes on in one process
    try:
        write_id_maps(pid, uid_mappings, gid_mappings)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        os.close(pidfd)


def pivot_to(root_fd: int) -> None:
    """Make an attached mount the root of this process, and detach the former one."""
    os.fchdir(root_fd)
    # pivot_root(2), "pivot_root(".", ".")": the old root is stacked below the new one, so that
    # no directory for it is needed, and "." still names it for the umount.
    syscalls.pivot_root(".", ".")
    syscalls.umount2(".", UmountFlag.DETACH)
    os.chdir("/")
    if os.getcwd() != "/":
        raise OSError(errno.EXDEV, f"working directory is {os.getcwd()}, not the new root")


def bring_up_loopback() -> None:
    """Set IFF_UP on lo (netdevice(7)): a new network namespace has it down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        reply = fcntl.ioctl(sock, SIOCGIFFLAGS, request)
        flags = struct.unpack_from("H", reply, 16)[0]
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def clone_root(container_pidfd: int) -> int:
    """A detached copy of the root mount of a container's mount namespace; the caller owns it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        child = os.fork()
        if child == 0:
            # A process of its own: one that entered the namespace would have to come back.
            try:
                syscalls.setns(container_pidfd, CloneFlag.NEWNS)
                flags = OpenTreeFlag.CLONE | OpenTreeFlag.CLOEXEC
                send_message(theirs, {}, [syscalls.open_tree(syscalls.AT_FDCWD, "/", flags)])
            except OSError as exc:
                send_message(theirs, {"errno": exc.errno, "message": str(exc)})
            finally:
                os._exit(0)
        theirs.close()
        message, fds = recv_message(ours)
        os.waitpid(child, 0)
        if not fds:
            found = message or {"errno": errno.EIO, "message": "the helper ended without a word"}
            raise OSError(found["errno"], f"cannot clone a container's root: {found['message']}")
        return fds[0]
