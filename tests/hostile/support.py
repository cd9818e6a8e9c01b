"""Raw connections of any uid, and what a daemon holds."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from tests.support import DEADLINE_S, RunningDaemon, wait_until

MALLORY, ALICE = 61011, 61012
PING = b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n"


@contextlib.contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """For connect(2): the peer's credentials are the effective ones (unix(7))."""
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def connect(daemon: RunningDaemon, uid: int = MALLORY) -> socket.socket:
    """A connection of a user's."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(DEADLINE_S)
    with acting_as(uid):
        sock.connect(str(daemon.socket_path))
    return sock


def read_all(sock: socket.socket) -> bytes:
    """Until the daemon closes."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := sock.recv(65536):
            data += chunk
    return data


def read_reply(sock: socket.socket) -> tuple[int, bytes]:
    """Status and body of one reply; (0, b"") when the daemon has closed instead."""
    data = b""
    while b"\r\n\r\n" not in data:
        try:
            chunk = sock.recv(1)
        except ConnectionResetError:
            chunk = b""
        if not chunk:
            return 0, data
        data += chunk
    head = data.lower()
    length = 0
    if b"content-length:" in head:
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
    body = b""
    while len(body) < length:
        body += sock.recv(length - len(body))
    return int(data.split(b" ")[1]), body


def exchange(daemon: RunningDaemon, data: bytes, uid: int = MALLORY) -> tuple[int, bytes]:
    """Send bytes, read one reply. A daemon that has refused meanwhile need not read it all."""
    with connect(daemon, uid) as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(data)
        return read_reply(sock)


def answers(daemon: RunningDaemon, uid: int = ALICE) -> bool:
    """Whether another user is served."""
    return exchange(daemon, PING, uid) == (200, b"OK")


def descriptors(daemon: RunningDaemon) -> dict[str, int]:
    """How many of each kind the daemon has open. Inode numbers are left out."""
    found: dict[str, int] = {}
    for entry in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            kind = os.readlink(entry).partition(":[")[0]
            found[kind] = found.get(kind, 0) + 1
    return found


@contextlib.contextmanager
def unharmed(daemon: RunningDaemon) -> Iterator[None]:
    """Afterwards the daemon runs, serves others, and holds what it held before."""
    assert answers(daemon)
    before = descriptors(daemon)
    yield
    assert daemon.process.poll() is None
    wait_until(lambda: answers(daemon), what="an answer, when the connections have been given back")

    def back() -> bool:
        now = descriptors(daemon)
        return all(now[kind] <= before.get(kind, 0) for kind in now)

    wait_until(back, what=f"descriptors as before: {before}, now {descriptors(daemon)}")
