"""Waiting for the end of a kernel's process, across restarts of the daemon."""

from __future__ import annotations

import http.client
import os
import select
import time
from collections.abc import Callable

from sandboxkernel.errors import DaemonUnavailable
from sandboxkernel.models import ExitInfo, Kernel
from sandboxkernel.unixhttp import decode_answer, error_from_response

__all__ = ["ExitWatch"]

RECONNECT_S = 0.25  # how often a watch looks for the next daemon
GONE_S = 10.0  # how long the next daemon may take to say how a process has ended
UNKNOWN_S = 300.0  # the same where nobody else can tell whether it has


class ExitWatch:
    """One open connection on which the end of a kernel's process will be told.

    `poll` costs one poll(2): a provisioner calls it ten times a second. A daemon that goes away
    takes no kernel with it, so the watch connects to the next one. While there is none, the process
    itself is looked at, through a pidfd, where that is possible.
    """

    def __init__(
        self,
        open_connection: Callable[[], http.client.HTTPConnection],
        kernel: Kernel | None = None,
    ) -> None:
        self._open = open_connection
        self._connection: http.client.HTTPConnection | None = open_connection()
        self._exit: ExitInfo | None = None
        self._pidfd = _pidfd_of(kernel) if kernel is not None else -1
        self._lost_at: float | None = None
        self._next_try = 0.0

    @property
    def is_lost(self) -> bool:
        """Whether there is no daemon to tell the end at the moment."""
        return self._lost_at is not None

    def fileno(self) -> int:
        """Becomes readable at the end, or when the daemon goes away; -1 when there is none."""
        sock = self._connection.sock if self._connection else None
        return sock.fileno() if sock is not None else -1

    def poll(self) -> ExitInfo | None:
        """The end if it has come.

        Raises DaemonUnavailable when the process has ended, or may have, and no daemon has come
        for a while to say how.
        """
        if self._exit is not None:
            return self._exit
        if self._lost_at is not None:
            self._reconnect()
        if self._connection is not None and _readable(self.fileno(), 0):
            self._exit = self._read()
        return self._exit

    def wait(self, timeout_s: float | None = None) -> ExitInfo | None:
        """Block until the end, or for a while."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (found := self.poll()) is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            if self._connection is not None:
                _readable(self.fileno(), left)
            else:
                time.sleep(RECONNECT_S if left is None else min(RECONNECT_S, left))
        return found

    def close(self) -> None:
        """Stop watching."""
        self._disconnect()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _reconnect(self) -> None:
        now, lost_at = time.monotonic(), self._lost_at
        if now < self._next_try:
            return
        self._next_try = now + RECONNECT_S
        try:
            self._connection = self._open()
            self._lost_at = None
        except DaemonUnavailable as exc:
            # One that is seen to live, lives; its clients talk to it without any daemon.
            alive = self._pidfd >= 0 and not _readable(self._pidfd, 0)
            patience_s = GONE_S if self._pidfd >= 0 else UNKNOWN_S
            if alive:
                self._lost_at = now
            elif lost_at is not None and now - lost_at > patience_s:
                raise DaemonUnavailable(
                    "the kernel has ended while no sandboxkernel daemon ran to say why"
                    if self._pidfd >= 0
                    else f"no sandboxkernel daemon has answered for {patience_s:g} s",
                    hint=exc.hint,
                ) from exc

    def _read(self) -> ExitInfo | None:
        assert self._connection is not None
        try:
            response = self._connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException):
            self._disconnect()
            self._lost_at = time.monotonic()
            self._next_try = 0.0
            return None
        self.close()
        if response.status != http.client.OK:
            raise error_from_response(response.status, data)
        return decode_answer(data, ExitInfo, "GET /v1/kernels/{id}/wait")


def _pidfd_of(kernel: Kernel) -> int:
    """A pidfd of a kernel's process; -1 where its pid means another process (PID namespaces)."""
    if kernel.pid is None:
        return -1
    try:
        fd = os.pidfd_open(kernel.pid)
    except OSError:
        return -1
    try:
        with open(f"/proc/{kernel.pid}/status", encoding="utf-8") as stream:
            inside = next((line for line in stream if line.startswith("NSpid:")), "")
    except OSError:
        inside = ""
    if len(inside.split()) > 2:  # it has a pid in a namespace below ours, as a sandbox's has
        return fd
    os.close(fd)
    return -1


def _readable(fd: int, timeout_s: float | None) -> bool:
    """poll(2): select(2) knows no descriptor above 1023, and a server may have more."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))
