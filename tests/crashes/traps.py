"""Runs as the daemon, or as its launcher: the product's, with a trap at everything that it does.

    python -m tests.crashes.traps RUN_DIR [arguments of the daemon]

While the file RUN_DIR/trap exists ("daemon 17", "launcher 4"), the named process counts its own
effects, and kills itself at that one: a journal entry, a message, a socket, a system call. Nothing
is caught and nothing tidied up. The name of the last effect is in RUN_DIR/trapped.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

LAUNCHER_BOOTSTRAP = (
    "import sys; sys.path[:0] = {path!r}; sys.argv.pop(1); "
    "from tests.crashes.traps import trap_launcher; trap_launcher({run_dir!r}); "
    "from sandboxruntime.launcher import main; main()"
)


class Trap:
    """Counts the effects of one process."""

    def __init__(self, run_dir: str, role: str) -> None:
        self._file, self._told = Path(run_dir, "trap"), Path(run_dir, "trapped")
        self._role, self._pid = role, os.getpid()
        self._seen, self._wanted = 0, ""

    def step(self, name: str) -> None:
        """One effect; maybe the last one of this process."""
        if os.getpid() != self._pid or not self._file.exists():
            return  # a child of the launcher, or nobody asked
        wanted = self._file.read_text()
        if wanted != self._wanted:
            self._wanted, self._seen = wanted, 0
        role, number = wanted.split()[:2]
        if role != self._role:
            return
        self._seen += 1
        if self._seen == int(number):
            self._told.write_text(name)
            self._file.unlink(missing_ok=True)  # whoever set it may have given up just now
            os.kill(self._pid, signal.SIGKILL)

    def wrap(self, owner: Any, name: str) -> None:
        """Put the trap before and after a function or method."""
        inner: Callable[..., Any] = getattr(owner, name)
        label = f"{getattr(owner, '__name__', owner)}.{name}"
        if inspect.iscoroutinefunction(inner):

            @functools.wraps(inner)
            async def outer(*args: Any, **kwargs: Any) -> Any:
                self.step(f"before {label}")
                result = await inner(*args, **kwargs)
                self.step(f"after {label}")
                return result

        else:

            @functools.wraps(inner)
            def outer(*args: Any, **kwargs: Any) -> Any:
                self.step(f"before {label}")
                result = inner(*args, **kwargs)
                self.step(f"after {label}")
                return result

        setattr(owner, name, outer)


def _public_functions(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and name[0] != "_"
    ]


def trap_launcher(run_dir: str) -> None:
    """Every system call that needs a wrapper, every cgroup, every message, another runtime's runs."""
    from sandboxruntime import launcher, oci, syscalls
    from sandboxruntime.cgroup import lifecycle

    trap = Trap(run_dir, "launcher")
    for name in _public_functions(syscalls):
        trap.wrap(syscalls, name)
    for name in ("make_parents", "make_leaf", "kill", "remove"):
        trap.wrap(lifecycle, name)
    for name in ("_write_bundle", "_execute", "check_identity", "remove_from_others"):
        trap.wrap(oci, name)
    for name in ("send_message", "recv_message"):
        trap.wrap(launcher, name)


def trap_daemon(run_dir: str) -> None:
    """Every journal entry, message to the launcher, socket and hand-over."""
    from sandboxkernel.daemon import launcher_client
    from sandboxkernel.daemon.handover import HandOver
    from sandboxkernel.daemon.launcher_client import LauncherClient
    from sandboxkernel.daemon.lease import LeaseJournal
    from sandboxkernel.daemon.sandbox import Sandbox
    from sandboxkernel.daemon.server import BaseHandler
    from sandboxkernel.daemon.sockets import KernelSockets

    launcher_client._BOOTSTRAP = LAUNCHER_BOOTSTRAP.format(path=sys.path, run_dir=run_dir)
    trap = Trap(run_dir, "daemon")
    for owner, names in (
        (LeaseJournal, ("write", "forget")),
        (LauncherClient, ("_send",)),
        (KernelSockets, ("open", "remove", "_bind")),
        (HandOver, ("run", "_send")),
        (Sandbox, ("on_exit_event", "release")),
        (BaseHandler, ("reply", "reply_empty")),
    ):
        for name in names:
            trap.wrap(owner, name)


def main() -> None:
    """Be the daemon."""
    run_dir = sys.argv.pop(1)
    trap_daemon(run_dir)
    from sandboxkernel.daemon.app import main as daemon_main

    daemon_main(sys.argv[1:])


if __name__ == "__main__":
    main()
