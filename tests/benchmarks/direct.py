"""Starts without jupyter_client's KernelManager, as the other sandboxes are started, too.

The manager sleeps for 10 ms in every start, shutdown and restart (its decorator for pending
kernels), for the plain kernel as for ours. These peers show what is under it: for ours one
request to the daemon, for the plain kernel one process that is given a connection file.
"""

from __future__ import annotations

import contextlib
import sys
import uuid
from pathlib import Path
from typing import Any

from sandboxkernel.errors import KernelNotFound
from sandboxkernel.models import Kernel, KernelCreate
from tests.benchmarks.containers import ContainerPeer, connection
from tests.benchmarks.peers import SandboxPeer

__all__ = ["DirectSandboxPeer", "ProcessPeer"]


class DirectSandboxPeer(SandboxPeer):
    """Ours, by the Python client that the provisioner uses."""

    _id = ""

    def start(self) -> dict[str, Any]:
        key = uuid.uuid4().hex
        kernel = self._client.create(
            KernelCreate(
                kernel_id=str(uuid.uuid4()),
                kernel_name=self.kernel_name,
                profile=self._profile,
                cwd=str(self._work),
                key=key,
            )
        )
        self._id = kernel.id
        assert kernel.connection is not None
        return {**connection(kernel.connection.ip, key), "key": key.encode()}

    def kernel(self) -> Kernel:
        return self._client.inspect(self._id)

    def stop(self) -> None:
        if self._id:
            with contextlib.suppress(KernelNotFound):  # one that did not start
                self._client.kill(self._id)
                self._client.remove(self._id)
            self._id = ""


class ProcessPeer(ContainerPeer):
    """The plain kernel: its program as a child of this process."""

    name = "plain"

    def __init__(self, work: Path) -> None:
        super().__init__(sys.executable)
        self._work = work

    def _command(self, directory: Path) -> list[str]:
        return ["env", "-C", str(self._work), *self._argv(directory)]
