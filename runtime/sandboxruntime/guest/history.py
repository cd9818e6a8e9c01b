"""IPython's history in a forked kernel: made in the zygote, opened when somebody needs it.

The lists of inputs and outputs are in the user's namespace from the beginning (`In`, `Out`), so
the manager that the zygote has made stays. Its database is the user's, and its thread cannot be
inherited: both come with the first use, or a moment after the start, in the control thread, so
that neither the first cell waits for them nor they for the first cell.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from IPython.core.history import HistoryManager

__all__ = ["IN_MEMORY", "arm_history", "closed_history"]

# The only argument that a forked kernel takes: nbclient, and so nbconvert and papermill, give it.
IN_MEMORY = "--HistoryManager.hist_file=:memory:"
OPEN_AFTER_S = 0.05
# What every use of the database looks at first. An input that is stored looks at `using_thread`,
# which is False until then, and so waits in the cache that the thread writes.
_NEEDS_OPENING = frozenset(("db", "enabled", "hist_file", "save_thread", "session_number"))


class _Unopened(HistoryManager):
    """A closed manager that opens itself when one of those is read."""

    def __getattribute__(self, name: str) -> Any:
        if name in _NEEDS_OPENING:
            _open(self)
        return HistoryManager.__getattribute__(self, name)  # its class is no longer this one


class _InMemory(_Unopened):
    """One whose database will be in memory, as the closed one's is said to be."""


class _Opening(threading.local):
    """Whether this thread is opening a manager: what that reads must not wait for itself."""

    active = False


_opening = _Opening()
_lock = threading.Lock()


def closed_history(shell: Any) -> None:
    """In place of the shell's init_history(), in the zygote."""
    shell.history_manager = HistoryManager(
        shell=shell, parent=shell, hist_file=":memory:", enabled=False
    )
    shell.configurables.append(shell.history_manager)


def arm_history(shell: Any, arguments: Sequence[str], loop: Any) -> None:
    """In a kernel with these arguments: let the manager be opened on demand, and before long.

    `loop` is the event loop of another thread than the one that runs cells.
    """
    manager = shell.history_manager
    manager.dir_hist[:] = [Path.cwd()]
    manager.__class__ = _InMemory if IN_MEMORY in arguments else _Unopened
    loop.add_callback(loop.call_later, OPEN_AFTER_S, lambda: manager.enabled)


def _open(manager: Any) -> None:
    """What the constructor does with a file, on the object that exists."""
    if _opening.active:
        return
    with _lock:
        in_memory = type(manager) is _InMemory
        if not in_memory and type(manager) is not _Unopened:
            return  # another thread has opened it meanwhile
        _opening.active = True
        try:
            manager.enabled = manager.trait_defaults("enabled")
            if not in_memory:
                manager.hist_file = manager._get_hist_file_name()
            HistoryManager.__init__(manager, shell=manager.shell, parent=manager.shell)
        finally:
            manager.__class__ = HistoryManager
            _opening.active = False
    if manager.using_thread and len(manager.db_input_cache) >= manager.db_cache_size:
        manager.save_flag.set()  # for what was stored until now
