"""HTTP/1.1 over the daemon's unix socket. Standard library."""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from sandboxkernel.errors import DaemonUnavailable, SandboxError, error_from_problem

__all__ = ["UnixConnection", "answering", "decode_answer", "error_from_response", "unavailable"]

CONNECT_TIMEOUT_S = 10.0
T = TypeVar("T")


class UnixConnection(http.client.HTTPConnection):
    """HTTP/1.1 over AF_UNIX."""

    def __init__(self, path: Path, timeout_s: float | None) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        """Connect to the daemon's socket. Raises DaemonUnavailable."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(CONNECT_TIMEOUT_S)
            sock.connect(str(self._path))
            sock.settimeout(self._timeout_s)
        except OSError as exc:
            sock.close()
            raise unavailable(self._path, exc) from exc
        self.sock = sock


def unavailable(path: Path, exc: OSError) -> DaemonUnavailable:
    """The error for a socket on which nobody answers."""
    if isinstance(exc, PermissionError):
        return DaemonUnavailable(
            f"not allowed to connect to {path}",
            hint="This daemon serves root only; ask the administrator for a system daemon.",
        )
    return DaemonUnavailable(
        f"no sandboxkernel daemon answers on {path}",
        hint="Start one as root with `sandboxkerneld` (or its service), or set SANDBOXKERNEL_HOST.",
    )


@contextlib.contextmanager
def answering(request: str) -> Iterator[None]:
    """Raises DaemonUnavailable where the answer to `request` (method and path) does not come."""
    try:
        yield
    # ValueError: of a chunk whose size is negative, which http.client does not look for.
    except (OSError, http.client.HTTPException, ValueError) as exc:
        raise DaemonUnavailable(
            f"the daemon's answer to {request} did not come, or broke off: "
            f"{exc or type(exc).__name__}",
            hint="It may have been restarted; look at its log.",
        ) from exc


def decode_answer(data: bytes, model: type[T], request: str) -> T:
    """What the daemon answered to `request`, or a line of it. Raises DaemonUnavailable."""
    try:
        return msgspec.json.decode(data, type=model)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise DaemonUnavailable(
            f"the daemon's answer to {request} is none that this client knows: {exc}",
            hint="Client and daemon should be of the same version.",
        ) from exc


def error_from_response(status: int, data: bytes) -> SandboxError:
    """The error that a reply of the daemon says."""
    try:
        problem = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return SandboxError(f"the daemon answered {status}: {data[:200]!r}")
    return error_from_problem(problem)
