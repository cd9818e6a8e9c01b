"""A kernel that nobody waits for any more is removed, whenever that is found out."""

from __future__ import annotations

import logging
import threading
from typing import Any

from sandboxkernel.creation import Creation
from sandboxkernel.errors import KernelNotFound
from sandboxkernel.models import KernelCreate
from tests.unit.test_cli import kernel

LOG = logging.getLogger(__name__)


class Daemon:
    """A client whose creation takes as long as the test wants."""

    def __init__(self, *, gone: bool = False) -> None:
        self.go = threading.Event()
        self.removed: list[str] = []
        self.has_removed = threading.Event()
        self._gone = gone

    def create(self, request: KernelCreate) -> Any:
        assert self.go.wait(10)
        return kernel()

    def remove(self, name: str) -> None:
        self.removed.append(name)
        self.has_removed.set()
        if self._gone:
            raise KernelNotFound(name)


def test_a_creation_that_is_wanted_stays() -> None:
    daemon = Daemon()
    daemon.go.set()
    creation = Creation(KernelCreate(kernel_id="k"), LOG)
    assert creation.run(daemon).id == "0123456789ab"  # type: ignore[arg-type]
    assert daemon.removed == []


def test_abandoned_while_the_daemon_is_at_work() -> None:
    daemon = Daemon(gone=True)
    creation = Creation(KernelCreate(kernel_id="k"), LOG)
    thread = threading.Thread(target=creation.run, args=(daemon,))
    thread.start()
    creation.abandon()
    assert daemon.removed == []
    daemon.go.set()
    thread.join(10)
    assert daemon.removed == ["0123456789ab"]


def test_abandoned_after_the_answer() -> None:
    daemon = Daemon()
    daemon.go.set()
    creation = Creation(KernelCreate(kernel_id="k"), LOG)
    creation.run(daemon)  # type: ignore[arg-type]
    creation.abandon()
    assert daemon.has_removed.wait(10)
    assert daemon.removed == ["0123456789ab"]
