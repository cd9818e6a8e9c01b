"""The five listening sockets of a kernel, bound by the daemon. Effectful.

The directory is root's, the sockets are the caller's: nobody but root can replace a name, and
nobody but the caller can connect. The descriptors outlive the kernel's process, so clients may
connect before it is up and stay connected, in the backlog, across a restart.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from sandboxkernel.errors import RequestError
from sandboxkernel.images.removal import remove_tree
from sandboxkernel.models import CONNECTION_PORTS

__all__ = ["BACKLOG", "KernelSockets"]

BACKLOG = 128  # connections that wait while the kernel starts
SOCKET_PATH_MAX = 107  # bytes; unix(7), sun_path without its final NUL


class KernelSockets:
    """Owner of `directory` and of the five listening sockets in it."""

    def __init__(self, directory: Path, *, uid: int, gid: int) -> None:
        self._directory = directory
        self._owner = (uid, gid)
        self._sockets: list[socket.socket] = []
        if len(os.fsencode(self._path(len(CONNECTION_PORTS)))) > SOCKET_PATH_MAX:
            raise RequestError(
                f"socket path {self._path(1)} is longer than {SOCKET_PATH_MAX} bytes",
                hint="Set SANDBOXKERNEL_RUN_DIR to a shorter directory.",
            )

    @property
    def prefix(self) -> str:
        """The `ip` of the connection info: jupyter_client appends "-<port>"."""
        return str(self._directory / "s")

    def _path(self, port: int) -> str:
        return f"{self._directory / 's'}-{port}"

    def open(self) -> None:
        """Bind and listen; afterwards `descriptors` can be handed over.

        Called before every start: a caller who is root can have unlinked the names
        (jupyter_client's cleanup_ipc_files), and they are bound again then.
        """
        self._directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        if self._sockets and all(self._is_bound(port) for port in self._ports()):
            return
        self.close_descriptors()
        for port in self._ports():
            self._sockets.append(self._bind(self._path(port)))

    def descriptors(self) -> list[int]:
        """The listening descriptors, shell first; still owned by this object."""
        return [sock.fileno() for sock in self._sockets]

    def close_descriptors(self) -> None:
        """Stop listening; the names stay."""
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()

    def remove(self) -> None:
        """Close and unlink everything. Raises OSError, and can be repeated."""
        self.close_descriptors()
        remove_tree(self._directory)

    @staticmethod
    def _ports() -> range:
        return range(1, len(CONNECTION_PORTS) + 1)

    def _is_bound(self, port: int) -> bool:
        return os.path.exists(self._path(port))

    def _bind(self, path: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass  # the usual case: the first start
            sock.bind(path)
            # Nobody can connect before listen(2), so there is no window with other modes.
            os.chmod(path, 0o600)
            os.chown(path, *self._owner)
            sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
        return sock
