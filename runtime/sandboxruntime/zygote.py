"""Zygotes, the launcher's side: asking one for a child that becomes pid 1 of a container.

A zygote is a process of the image without any capability. Its child makes the namespaces, and
the launcher, which alone may, maps its ids and hands it the mounts. What the launcher learns of
the child it learns from Linux (SCM_CREDENTIALS, pidfd), never by the zygote's word: a hostile
image can refuse service to itself, and outside verification holds its children to the spec.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import select
import signal
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any

from sandboxruntime.cgroup import Cgroup, Layout, Limits
from sandboxruntime.channel import close_fds, recv_message, send_message
from sandboxruntime.errors import SpecError
from sandboxruntime.processes import open_process
from sandboxruntime.spec import Spec, to_json
from sandboxruntime.steps import Step

__all__ = [
    "BORN",
    "Child",
    "Spare",
    "Zygote",
    "decode_program",
    "encode_program",
    "end",
    "receive_orders",
]

BORN = b"born"
DEADLINE_S = 2.0  # a fork takes milliseconds; a zygote that hangs is replaced by a cold start


@dataclass(slots=True)
class Child:
    """A fork of a zygote that waits for its ids and its mounts."""

    pid: int
    pidfd: int
    sock: socket.socket

    def confine(self, spec: Spec, program: bytes, fds: list[int], fail_at: Step | None) -> None:
        """Send all it needs to confine itself. Borrows `fds`; ends the conversation."""
        message = {"spec": to_json(spec), "seccomp": encode_program(program), "fail_at": fail_at}
        # Pid 1 and the kernel's process read the same socket: each takes one of the two.
        send_message(self.sock, message, fds)
        send_message(self.sock, message, fds)


class Zygote:
    """A running zygote. `control` is one end of the SOCK_SEQPACKET pair that it serves."""

    def __init__(self, spec: Spec, control: socket.socket) -> None:
        self._spec = spec
        self._control = control
        self._control.settimeout(DEADLINE_S)

    @property
    def container_id(self) -> str:
        """The container that it runs in."""
        return self._spec.container_id

    def fileno(self) -> int:
        """Becomes readable when the zygote ends."""
        return self._control.fileno()

    def ask(self, cgroup: Cgroup) -> socket.socket:
        """Ask for a child in this cgroup; receive() takes the answer. Raises OSError."""
        cgroup.admit(self._spec.process.gid, self._spec.cgroups_path)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds: list[int] = []
        try:
            fds += (task_fds := cgroup.entry_fds())
            if (directory_fd := cgroup.directory_fd()) >= 0:
                fds.append(directory_fd)
            ours.settimeout(DEADLINE_S)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            message = {"op": "fork", "tasks": len(task_fds)}
            send_message(self._control, message, [theirs.fileno(), *fds])
            return ours
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            close_fds(fds)

    def receive(self, sock: socket.socket) -> Child:
        """The child that was asked for on this socket. Raises OSError."""
        space = socket.CMSG_SPACE(struct.calcsize("3i"))
        data, ancillary, _, _ = sock.recvmsg(4096, space)
        if data != BORN:
            raise OSError(
                errno.EIO, f"the zygote could not fork: {data.decode(errors='replace')!r}"
            )
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                pid = int(struct.unpack("3i", content)[0])
                return Child(pid, self._attest(pid), sock)
        raise OSError(errno.EIO, "no credentials came with the child's word")

    def _attest(self, pid: int) -> int:
        """A pidfd of the child. Its uid is this zygote's, which no other program has."""
        pidfd = open_process(pid)
        try:
            with open(f"/proc/{pid}/status", encoding="utf-8") as stream:
                uids = next(line.split()[1:] for line in stream if line.startswith("Uid:"))
            signal.pidfd_send_signal(pidfd, 0)  # so what was read was read of this process
            if set(uids) != {str(self._spec.process.uid)}:
                raise OSError(errno.EPERM, f"pid {pid} has uids {uids}, not the zygote's")
            return pidfd
        except BaseException:
            os.close(pidfd)
            raise

    def close(self) -> None:
        """Close the control socket, upon which the zygote ends; its children live on."""
        self._control.close()


@dataclass(slots=True)
class Spare:
    """A child forked ahead of any request, in a cgroup of its own. It is nobody's yet."""

    child: Child
    cgroup: Cgroup
    limits: Limits

    @classmethod
    def park(cls, zygote: Zygote, layout: Layout, path: str, limits: Limits) -> Spare:
        """Make a cgroup and a child in it. Raises OSError or HostError; leaves nothing then."""
        cgroup = Cgroup.create(layout, path, limits, guard_devices=True)
        try:
            return cls(zygote.receive(zygote.ask(cgroup)), cgroup, limits)
        except BaseException:
            cgroup.kill()
            cgroup.remove()
            raise

    def take_limits(self, spec: Spec) -> None:
        """Give it the limits of a spec. Raises HostError, or SpecError for another's cgroup."""
        if spec.cgroups_path != self.cgroup.path:
            raise SpecError(f"the spare is in {self.cgroup.path}", field="cgroups_path")
        if spec.limits != self.limits:
            self.cgroup.update(spec.limits)

    def discard(self) -> None:
        """End it and remove its cgroup. One that has failed can be repeated."""
        self.child.sock.close()
        self.cgroup.kill()
        if self.child.pidfd >= 0:
            end(self.child.pidfd)
            self.child.pidfd = -1
        self.cgroup.remove()


def encode_program(program: bytes) -> str:
    """A seccomp filter as JSON."""
    return base64.b64encode(program).decode()


def decode_program(text: str) -> bytes:
    """The reverse of encode_program()."""
    return base64.b64decode(text)


def receive_orders(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The child's side of Child.confine(). Raises EOFError when the launcher gave up."""
    message, fds = recv_message(sock)
    if message is None:
        close_fds(fds)
        raise EOFError("the launcher gave up")
    return message, fds


def end(pidfd: int, deadline_s: float = 10.0) -> None:
    """Kill a process and wait until it is gone, whoever its parent is. Closes `pidfd`."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended and was, or waits to be, reaped
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    limit = time.monotonic() + deadline_s  # it may be stuck, or frozen
    while not poll.poll(max(0.0, (limit - time.monotonic()) * 1000)):
        if time.monotonic() > limit:
            break
    with contextlib.suppress(ChildProcessError):  # a zygote's child: Linux reaps it for its parent
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    os.close(pidfd)
