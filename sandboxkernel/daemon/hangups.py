"""Whether the callers of long requests are still there: one look at all of them. asyncio.

tornado does not look at a connection while it holds bytes of a next request.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import Callable, Iterator

__all__ = ["HangUps", "has_hung_up"]

CHECK_S = 60.0  # between looks; hundreds of kernels are watched, each by a request


def has_hung_up(sock: socket.socket) -> bool:
    """Whether the peer of a socket has, as Linux says it (poll(2))."""
    poller = select.poll()
    poller.register(sock, 0)  # POLLHUP and POLLERR are always told
    return bool(poller.poll(0))


class HangUps:
    """Looks at all the sockets that are watched at once; a timer each woke every request."""

    def __init__(self) -> None:
        self._watched: dict[object, tuple[socket.socket, Callable[[], None]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Nothing is watched, and no look is due."""
        return not self._watched and self._timer is None

    @contextlib.contextmanager
    def watching(self, sock: socket.socket, tell: Callable[[], None]) -> Iterator[None]:
        """Call `tell`, perhaps more than once, if the peer of `sock` hangs up meanwhile."""
        key = object()  # descriptors are used again
        self._watched[key] = (sock, tell)
        if self._timer is None:
            self._wait()
        try:
            yield
        finally:
            del self._watched[key]

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(CHECK_S, self._look)

    def _look(self) -> None:
        for sock, tell in list(self._watched.values()):
            if sock.fileno() >= 0 and has_hung_up(sock):
                tell()
        self._timer = None
        if self._watched:
            self._wait()
