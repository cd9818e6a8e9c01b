"""IPython's history in a forked kernel: made in the zygote, opened when somebody needs it.

The lists of inputs and outputs are in the user's namespace from the beginning (`In`, `Out`), so
the manager that the zygote has made stays. Its database is the user's, and its thread cannot be
inherited: both come with the first use, or when the kernel has nothing else to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from IPython.core.history import HistoryManager
from tornado.ioloop import IOLoop

__all__ = ["IN_MEMORY", "arm_history", "closed_history"]

# The only argument that a forked kernel takes: nbclient, and so nbconvert and papermill, give it.
IN_MEMORY = "--HistoryManager.hist_file=:memory:"
IDLE_S = 0.05
# What every use of the database or of the thread looks at first.
_NEEDS_OPENING = frozenset(
    ("db", "enabled", "hist_file", "save_thread", "session_number", "using_thread")
)


class _Unopened(HistoryManager):
    """A closed manager that opens itself when one of those is read."""

    def __getattribute__(self, name: str) -> Any:
        if name in _NEEDS_OPENING:
            _open(self)
        return HistoryManager.__getattribute__(self, name)  # its class is no longer this one


class _InMemory(_Unopened):
    """One whose database will be in memory, as the closed one's is said to be."""


def closed_history(shell: Any) -> None:
    """In place of the shell's init_history(), in the zygote."""
    shell.history_manager = HistoryManager(
        shell=shell, parent=shell, hist_file=":memory:", enabled=False
    )
    shell.configurables.append(shell.history_manager)


def arm_history(shell: Any, arguments: Sequence[str]) -> None:
    """In a kernel with these arguments: let the manager be opened on demand, and before long."""
    manager = shell.history_manager
    manager.dir_hist[:] = [Path.cwd()]
    manager.__class__ = _InMemory if IN_MEMORY in arguments else _Unopened
    IOLoop.current().call_later(IDLE_S, lambda: manager.enabled)


def _open(manager: Any) -> None:
    """What the constructor does with a file, on the object that exists."""
    in_memory = type(manager) is _InMemory
    manager.__class__ = HistoryManager
    manager.enabled = manager.trait_defaults("enabled")
    if not in_memory:
        manager.hist_file = manager._get_hist_file_name()
    HistoryManager.__init__(manager, shell=manager.shell, parent=manager.shell)
