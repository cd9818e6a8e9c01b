"""The daemon's end of the hand-over socket: hello, outside verification, payload. asyncio."""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import os
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sandboxkernel.daemon.lease import Started
from sandboxkernel.errors import KernelStartFailed
from sandboxruntime import syscalls
from sandboxruntime.cgroup import Cgroup
from sandboxruntime.channel import close_fds
from sandboxruntime.handover import (
    HELLO,
    MAX_RESULT,
    Payload,
    Result,
    encode_payload,
    read_result,
)
from sandboxruntime.processes import open_process
from sandboxruntime.spec import Spec
from sandboxruntime.verify import Facts, read_facts, start_ticks

__all__ = ["HandOver", "Peer", "Process"]

SO_PASSPIDFD = 76  # asm-generic/socket.h
SCM_PIDFD = 4
TIMEOUT_S = 10.0


class Peer:
    """The process at the other end, as Linux attests it: never by its own word."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd

    @classmethod
    def find(cls, pid: int, ticks: int) -> Peer | None:
        """The process that had this pid when it was started at `ticks`; None if it has ended."""
        try:
            peer = cls(pid, open_process(pid))
        except ProcessLookupError:
            return None
        if peer.ticks() != ticks:
            peer.close()
            return None
        return peer

    def ticks(self) -> int:
        """When it was started, in clock ticks after boot; -1 once it has ended."""
        try:
            return start_ticks(self.pid)
        except (FileNotFoundError, ProcessLookupError):
            return -1

    def signal_group(self, signum: int) -> None:
        """Signal its process group. Raises ProcessLookupError when it has ended."""
        try:
            syscalls.pidfd_send_signal_group(self.pidfd, signum)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            # Linux before 6.9. The pidfd says whether the pid is still the one we mean.
            signal.pidfd_send_signal(self.pidfd, 0)
            os.killpg(self.pid, signum)

    def kill(self) -> None:
        """SIGKILL for this process alone. One that has ended is no error."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Close the pidfd."""
        os.close(self.pidfd)


@dataclass(slots=True)
class Process:
    """A running start of a sandbox. `filters` is how many seccomp filters its program has."""

    peer: Peer
    cgroup: Cgroup
    facts: Facts
    filters: int
    ticks: int

    def started(self, spec: Spec, init_pid: int) -> Started:
        """What a daemon that comes after this one finds it again by."""
        return Started(
            spec=spec, init_pid=init_pid, pid=self.peer.pid, ticks=self.ticks, filters=self.filters
        )


class HandOver:
    """One start. `theirs` goes to the launcher and must be closed once it has been sent."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._ours.setblocking(False)
        self._attest(True)
        self._meeting: asyncio.Task[tuple[Peer, Facts]] | None = None

    def _attest(self, wanted: bool) -> None:
        self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, wanted)
        try:
            self._ours.setsockopt(socket.SOL_SOCKET, SO_PASSPIDFD, wanted)
        except OSError as exc:
            # Linux before 6.5: pidfd_open on the attested pid, which cannot be reused yet.
            if exc.errno != errno.ENOPROTOOPT:
                raise

    def begin(self) -> None:
        """Wait from now on for the hello, and look at the process at once.

        Otherwise that is run()'s first step. What is read then, is judged in run().
        """
        self._meeting = asyncio.create_task(self._meet())

    def close(self) -> None:
        """Close both ends; a process that still waits ends."""
        self.theirs.close()
        if self._meeting is None:
            self._ours.close()
        else:  # which still has its hand on the socket
            self._meeting.add_done_callback(self._leave)
            self._meeting.cancel()

    async def run(
        self, judge: Callable[[Facts], None], payload: Payload, fds: list[int]
    ) -> tuple[Peer, Facts, Result]:
        """Wait for the hello, have the process judged, hand over, wait for the exec.

        Borrows `fds`. Raises what `judge` does (VerifyError), or KernelStartFailed when the
        program cannot be executed.
        """
        if self._meeting is None:
            self.begin()
        assert self._meeting is not None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                peer, facts = await self._meeting
                self._meeting = None
                try:
                    judge(facts)
                    await self._send(encode_payload(payload), fds)
                    result = await self._result(payload)
                except BaseException:
                    peer.close()
                    raise
                return peer, facts, result
        except (BrokenPipeError, ConnectionResetError, FileNotFoundError, ProcessLookupError):
            raise KernelStartFailed(
                "the process ended during the hand-over", step="hand_over"
            ) from None
        except TimeoutError:
            raise KernelStartFailed(
                f"the process did not take over within {TIMEOUT_S:g} s", step="hand_over"
            ) from None

    async def _meet(self) -> tuple[Peer, Facts]:
        peer = await self._hello()
        try:
            return peer, read_facts(peer.pid)
        except BaseException:
            peer.close()
            raise

    def _leave(self, meeting: asyncio.Task[tuple[Peer, Facts]]) -> None:
        """Nobody took what a meeting brought."""
        self._ours.close()
        if not meeting.cancelled() and meeting.exception() is None:
            meeting.result()[0].close()

    async def _hello(self) -> Peer:
        space = socket.CMSG_SPACE(struct.calcsize("3i")) + socket.CMSG_SPACE(4)
        while True:
            await self._readable()
            try:
                data, ancillary, _, _ = self._ours.recvmsg(
                    len(HELLO), space, socket.MSG_CMSG_CLOEXEC
                )
                break
            except BlockingIOError:
                continue
        # Only the hello needs attesting; later messages must not bring descriptors along.
        self._attest(False)
        pid, pidfd = -1, -1
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                pid = struct.unpack("3i", content)[0]
            elif level == socket.SOL_SOCKET and kind == SCM_PIDFD:
                pidfd = array.array("i", content)[0]
            elif level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                # Nobody asked for them; they took the room of the pidfd, too.
                whole = len(content) - len(content) % 4
                close_fds(list(array.array("i", content[:whole])))
        if data != HELLO or pid <= 0:
            if pidfd >= 0:
                os.close(pidfd)
            raise KernelStartFailed("the process ended before the hand-over", step="hand_over")
        return Peer(pid, pidfd if pidfd >= 0 else open_process(pid))

    async def _send(self, frame: bytes, fds: list[int]) -> None:
        ancillary: list[tuple[int, int, Any]] = []
        if fds:
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds)))
        self._ours.sendmsg([frame[:1]], ancillary)
        await asyncio.get_running_loop().sock_sendall(self._ours, frame[1:])

    async def _result(self, payload: Payload) -> Result:
        data = b""
        while chunk := await self._recv():
            data += chunk
            if len(data) > MAX_RESULT:
                raise KernelStartFailed(
                    f"the process said more than {MAX_RESULT} bytes while it took over",
                    step="hand_over",
                )
        try:
            result = read_result(data)
        except ValueError as exc:
            raise KernelStartFailed(
                f"the process said {data[:100]!r} while it took over", step="hand_over"
            ) from exc
        if result.failure is not None:
            code, message = result.failure
            raise KernelStartFailed(
                f"cannot execute {payload.argv[0]!r} inside: {message}",
                step="hand_over",
                errno=code,
            )
        return result

    async def _recv(self) -> bytes:
        while True:
            await self._readable()
            try:
                return self._ours.recv(65536)
            except BlockingIOError:
                continue

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def on_readable() -> None:
            if not future.done():
                future.set_result(None)

        loop.add_reader(self._ours.fileno(), on_readable)
        try:
            await future
        finally:
            loop.remove_reader(self._ours.fileno())
