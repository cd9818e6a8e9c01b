"""Delete trees that somebody hostile may have filled. Creates nothing: works on a full disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sandboxkernel.images.treewalk import TreeCursor, open_cursor

__all__ = ["remove_tree"]


def remove_tree(path: Path) -> None:
    """Remove a file or tree; what is already gone is fine.

    The caller owns the parent directory and nobody else may write there; no process uses the tree
    any more. Links are removed, never followed; a mounted file system stops it. Raises OSError.
    """
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            with open_cursor(path) as cursor:
                _empty(cursor)
            os.rmdir(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass  # somebody else removed it, which is what we want


def _empty(cursor: TreeCursor) -> None:
    way: list[str] = []
    pending = [_unlink_files(cursor.fd)]
    while True:
        if pending[-1]:
            name = pending[-1].pop()
            cursor.enter(name)
            way.append(name)
            pending.append(_unlink_files(cursor.fd))
            continue
        pending.pop()
        if not pending:
            return
        cursor.leave()
        os.rmdir(way.pop(), dir_fd=cursor.fd)


def _unlink_files(directory_fd: int) -> list[str]:
    """Unlink everything that is no directory; return the directories."""
    with os.scandir(directory_fd) as entries:
        listed = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in listed:
        if not is_directory:
            os.unlink(name, dir_fd=directory_fd)
    return [name for name, is_directory in listed if is_directory]
