"""The daemon's end of the launcher's socket. Effectful, asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sandboxruntime
from sandboxkernel.daemon.problems import error_from_launcher
from sandboxkernel.errors import KernelStartFailed, LauncherLost, SandboxError
from sandboxruntime.channel import DescriptorsLost, close_fds, recv_message, send_message

__all__ = ["LauncherClient"]

log = logging.getLogger(__name__)

SO_SNDBUFFORCE = 32  # asm-generic/socket.h
# A former launcher may be in the middle of a start, and is waited for: of another runtime (oci.py,
# container.py) twice 20 s.
READY_TIMEOUT_S = 50.0
AGAIN_MAX = 5  # how often a request that may be repeated survives a launcher that is killed
AGAIN_AFTER_S = (0.05, 0.5)  # and an operation of Linux that fails: so long later it is asked again
# A spec is 4 KiB, and the launcher may be busy: a class that starts at once fits.
SEND_BUFFER = 4 * 1024 * 1024  # bytes
SEND_AGAIN_S = 0.005  # and what does not fit, waits
# -I -S: no environment, no site, no user directory; only the standard library and this package.
_BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from sandboxruntime.launcher import main; main()"
)


class LauncherClient:
    """Starts the launcher and matches replies to requests by serial number.

    A launcher that is killed fails the requests on their way with LauncherLost, and is reported as
    the event "lost". Its owner starts another one; requests wait until that has been `opened`.
    """

    def __init__(self, on_event: Callable[[dict[str, Any]], None]) -> None:
        self._open = asyncio.Event()
        self._stopped = False
        self._on_event = on_event
        self._sock: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._serial = 0
        self._waiting: dict[int, asyncio.Future[tuple[dict[str, Any], list[int]]]] = {}
        self._ready: asyncio.Future[int] | None = None
        self.pid: int | None = None

    async def start(self, staging: Path) -> None:
        """Spawn a launcher and wait until it serves. Until open(), it serves `early` ones only."""
        if self._process is not None:  # the one that was lost
            await asyncio.to_thread(self._process.wait)
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with contextlib.suppress(PermissionError):  # beyond net.core.wmem_max: socket(7)
            ours.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER)
        package_root = os.path.dirname(os.path.dirname(os.path.abspath(sandboxruntime.__file__)))
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-S",
                "-c",
                _BOOTSTRAP,
                package_root,
                str(theirs.fileno()),
                str(staging),
            ],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={"PATH": os.defpath} | _test_fault(),
            cwd="/",
        )
        theirs.close()
        self._sock = ours
        self._ready = loop.create_future()
        loop.add_reader(ours.fileno(), self._read)
        try:
            self.pid = await asyncio.wait_for(self._ready, READY_TIMEOUT_S)
        except TimeoutError:
            raise SandboxError(f"the launcher did not start within {READY_TIMEOUT_S:g} s") from None

    def open(self) -> None:
        """Every container that a former launcher left has been adopted: serve everybody."""
        if self._sock is not None:
            self._open.set()

    async def request(
        self, op: str, fds: list[int] | None = None, *, early: bool = False, **members: Any
    ) -> tuple[dict[str, Any], list[int]]:
        """Send one request; returns the reply and its descriptors, which the caller owns.

        Borrows `fds`. Raises the SandboxError that the launcher's error converts to. `early` ones
        need not wait for open().
        """
        if self._stopped:
            raise LauncherLost("the launcher has been stopped")
        if not early:
            try:
                # Not wait_for(): it can swallow the cancellation of a start whose caller has gone.
                async with asyncio.timeout(READY_TIMEOUT_S):
                    await self._open.wait()
            except TimeoutError:
                raise LauncherLost("the launcher is not running") from None
        return await self._send(op, fds or [], members)

    async def request_again(self, op: str, **members: Any) -> dict[str, Any]:
        """The reply to a request that may be repeated: what ends and removes.

        It survives the loss of the launcher, and an operation that fails for a moment.
        """
        pauses = iter(AGAIN_AFTER_S)
        for _ in range(AGAIN_MAX):
            try:
                return (await self.request(op, **members))[0]
            except LauncherLost:
                if self._stopped:
                    raise
            except KernelStartFailed as exc:
                pause = next(pauses, None)
                if pause is None:
                    raise
                log.warning("%s is asked for again: %s", op, exc)
                await asyncio.sleep(pause)
        raise LauncherLost(f"{AGAIN_MAX} launchers were lost during one {op}")

    async def _send(
        self, op: str, fds: list[int], members: dict[str, Any]
    ) -> tuple[dict[str, Any], list[int]]:
        if self._sock is None:
            raise LauncherLost("the launcher has ended")
        self._serial += 1
        serial = self._serial
        future: asyncio.Future[tuple[dict[str, Any], list[int]]] = (
            asyncio.get_running_loop().create_future()
        )
        self._waiting[serial] = future
        try:
            # Until there is room, or the launcher's end is read, which fails the future.
            while not future.done():
                try:
                    send_message(self._sock, {"op": op, "serial": serial, **members}, fds)
                    break
                except BlockingIOError:
                    await asyncio.sleep(SEND_AGAIN_S)
                except (BrokenPipeError, ConnectionResetError):
                    break
            reply, reply_fds = await asyncio.shield(future)
        finally:
            self._waiting.pop(serial, None)
        if "error" in reply:
            close_fds(reply_fds)
            raise error_from_launcher(reply["error"])
        return reply, reply_fds

    async def stop(self) -> None:
        """Close the socket, upon which the launcher ends and leaves its containers."""
        self._stopped = True
        self._open.clear()
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None
        self._fail_all(LauncherLost("the launcher has been stopped"))
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)
            self._process = None

    def _read(self) -> None:
        assert self._sock is not None
        try:
            message, fds = recv_message(self._sock)
        except BlockingIOError:
            return
        except DescriptorsLost as exc:
            message, fds = {**exc.message, "error": {"type": "OSError", "message": str(exc),
                                                     "errno": errno.EMFILE}}, []  # fmt: skip
        except ConnectionResetError:
            message, fds = None, []
        if message is None:
            self._lost()
            return
        serial = message.get("serial")
        if serial is not None:
            future = self._waiting.get(serial)
            if future is not None and not future.done():
                future.set_result((message, fds))
            else:
                close_fds(fds)
        elif message.get("event") == "ready" and self._ready is not None:
            with contextlib.suppress(asyncio.InvalidStateError):
                self._ready.set_result(message["pid"])
        else:
            self._on_event(message)

    def _lost(self) -> None:
        assert self._sock is not None
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._sock.close()
        self._sock = None
        self._open.clear()
        self._fail_all(
            LauncherLost("the launcher was killed under this request", hint="Try again.")
        )
        self._on_event({"event": "lost"})

    def _fail_all(self, error: LauncherLost) -> None:
        futures: list[asyncio.Future[Any]] = [*self._waiting.values()]
        if self._ready is not None:
            futures.append(self._ready)
        for future in futures:
            if not future.done():
                future.set_exception(error)


def _test_fault() -> dict[str, str]:
    name = "SANDBOXRUNTIME_FAIL_AT"
    return {name: os.environ[name]} if name in os.environ else {}
