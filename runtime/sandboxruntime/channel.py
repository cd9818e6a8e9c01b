"""Messages between daemon, launcher and container set-up: JSON and descriptors over a socket.

SOCK_SEQPACKET keeps message borders and has no name on the filesystem that anyone could reach
(unix(7)). No pickle, no newline protocol.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from typing import Any

__all__ = [
    "MAX_FDS", "MAX_MESSAGE", "DescriptorsLost", "close_fds", "recv_exact", "recv_message",
    "send_message",
]  # fmt: skip

MAX_MESSAGE = 128 * 1024  # bytes; a spec is about 3 KiB
MAX_FDS = 32  # the kernel's own limit is SCM_MAX_FD, 253
_FD_SPACE = socket.CMSG_SPACE(MAX_FDS * struct.calcsize("i"))


class DescriptorsLost(ValueError):
    """A message whose descriptors found no room here (recvmsg(2), MSG_CTRUNC); the rest of it."""

    def __init__(self, message: dict[str, Any]) -> None:
        super().__init__("descriptors without room for them (RLIMIT_NOFILE)")
        self.message = message


def close_fds(fds: list[int]) -> None:
    """Close descriptors that nobody will own."""
    for fd in fds:
        os.close(fd)


def send_message(
    sock: socket.socket, message: dict[str, Any], fds: list[int] | None = None
) -> None:
    """Send one message with its descriptors; the caller keeps its own copies."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MAX_MESSAGE:
        raise ValueError(f"message of {len(data)} bytes exceeds {MAX_MESSAGE}")
    ancillary = []
    if fds:
        ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes()))
    sock.sendmsg([data], ancillary)


def recv_message(sock: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Receive one message; (None, []) at end of file. The caller owns the descriptors.

    Raises ValueError for what is no message, DescriptorsLost for one that has lost some, and
    closes the descriptors that came with it.
    """
    data, ancillary, flags, _ = sock.recvmsg(MAX_MESSAGE, _FD_SPACE, socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received = array.array("i")
            received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
            fds.extend(received)
    if flags & socket.MSG_TRUNC:
        close_fds(fds)
        raise ValueError("truncated message")
    if not data:
        close_fds(fds)
        return None, []
    try:
        message = json.loads(data)
        if not isinstance(message, dict):
            raise ValueError("message is not an object")
    except (ValueError, RecursionError) as exc:
        close_fds(fds)
        raise ValueError(f"not a message: {exc}") from exc
    if flags & socket.MSG_CTRUNC:
        close_fds(fds)
        raise DescriptorsLost(message)
    return message, fds


def recv_exact(sock: socket.socket, size: int) -> bytes:
    """Read exactly `size` bytes of a stream socket, or raise EOFError."""
    chunks = bytearray()
    while len(chunks) < size:
        chunk = sock.recv(size - len(chunks))
        if not chunk:
            raise EOFError(f"stream ended after {len(chunks)} of {size} bytes")
        chunks += chunk
    return bytes(chunks)
