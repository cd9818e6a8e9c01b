"""The creation of a kernel in a thread, in which an event loop may lose interest at any moment."""

from __future__ import annotations

import logging
import threading

from sandboxkernel.client import SandboxClient
from sandboxkernel.errors import DaemonUnavailable, KernelNotFound, RemovalPending
from sandboxkernel.models import Kernel, KernelCreate

__all__ = ["Creation"]


class Creation:
    """One creation. A kernel that comes after `abandon`, or has come before it, is removed.

    A thread that waits for the daemon cannot be cancelled, and a daemon whose answer nobody
    takes has a kernel that nobody knows.
    """

    def __init__(self, request: KernelCreate, log: logging.Logger) -> None:
        self.request = request
        self._log = log
        self._lock = threading.Lock()
        self._created: tuple[SandboxClient, Kernel] | None = None
        self._abandoned = False

    def run(self, client: SandboxClient) -> Kernel:
        """Create the kernel. Blocks; raises what the client raises."""
        kernel = client.create(self.request)
        with self._lock:
            self._created, abandoned = (client, kernel), self._abandoned
        if abandoned:
            self._remove(client, kernel)
        return kernel

    def abandon(self) -> None:
        """Nobody wants it any more. Does not block."""
        with self._lock:
            self._abandoned, created = True, self._created
        if created is not None:
            threading.Thread(target=self._remove, args=created).start()

    def _remove(self, client: SandboxClient, kernel: Kernel) -> None:
        try:
            client.remove(kernel.id)
        except (KernelNotFound, DaemonUnavailable, RemovalPending) as exc:
            self._log.debug("kernel %s not removed: %s", kernel.kernel_id, exc)
