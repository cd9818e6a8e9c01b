"""Output of sandboxes: one bounded buffer each, with any number of readers. asyncio."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

__all__ = ["LOG_BYTES_MAX", "LogBuffer"]

LOG_BYTES_MAX = 256 * 1024  # bytes kept per sandbox
_READ_SIZE = 64 * 1024


class LogBuffer:
    """Keeps the last LOG_BYTES_MAX bytes of a pipe.

    While somebody follows, the pipe is read only as fast as the slowest follower, so that a
    followed program loses no output; without followers it is drained and the oldest is dropped.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._start = 0  # stream position of the first byte kept
        self._fd: int | None = None
        self._reading = False
        self._changed = asyncio.Event()
        self._followers: dict[object, int] = {}

    @property
    def end(self) -> int:
        """Stream position after the last byte."""
        return self._start + len(self._data)

    def attach(self) -> int:
        """Make a new pipe; returns the write end, which the caller hands over and closes."""
        read_fd, write_fd = os.pipe()
        self.adopt(read_fd)
        return write_fd

    def adopt(self, read_fd: int) -> None:
        """Read from this pipe from now on; takes the descriptor."""
        self.detach()
        os.set_blocking(read_fd, False)
        self._fd = read_fd
        self._resume()

    def detach(self) -> None:
        """Stop reading: the writers are gone or do not matter any more."""
        if self._fd is not None:
            self._pause()
            os.close(self._fd)
            self._fd = None
        self._notify()

    def drain(self) -> None:
        """Read what is left in the pipe, for when its writers have just ended."""
        while self._fd is not None and self._read_once():
            pass

    def tail(self, size: int = LOG_BYTES_MAX) -> bytes:
        """The last `size` bytes."""
        return bytes(self._data[-size:]) if size else b""

    async def follow(self, position: int) -> AsyncIterator[bytes]:
        """Bytes from a stream position on, until the pipe is closed by its writers."""
        token = object()
        self._followers[token] = position
        try:
            while True:
                position = max(position, self._start)
                chunk = bytes(self._data[position - self._start :])
                if chunk:
                    position += len(chunk)
                    self._followers[token] = position
                    self._resume()
                    yield chunk
                elif self._fd is None:
                    return
                else:
                    changed = self._changed
                    await changed.wait()
        finally:
            del self._followers[token]
            self._resume()

    def _read_once(self) -> bool:
        assert self._fd is not None
        try:
            chunk = os.read(self._fd, _READ_SIZE)
        except BlockingIOError:
            return False
        if not chunk:
            self.detach()
            return False
        self._data += chunk
        excess = len(self._data) - LOG_BYTES_MAX
        if excess > 0:
            del self._data[:excess]
            self._start += excess
        if self._followers and self.end - min(self._followers.values()) > LOG_BYTES_MAX // 2:
            self._pause()
        self._notify()
        return True

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _pause(self) -> None:
        if self._reading and self._fd is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
        self._reading = False

    def _resume(self) -> None:
        if self._fd is not None and not self._reading:
            asyncio.get_running_loop().add_reader(self._fd, self._read_once)
            self._reading = True
