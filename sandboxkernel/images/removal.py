"""Delete trees that somebody hostile may have filled. Creates nothing: works on a full disk."""

from __future__ import annotations

import itertools
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from sandboxkernel.images.treewalk import TreeCursor, open_cursor

__all__ = ["remove_tree"]

NAMES_MAX = 10_000  # held of one directory: it may have millions, at a dozen bytes of disk each
ROUNDS = 100  # through a tree that somebody else removes, too


def remove_tree(path: Path) -> None:
    """Remove a file or tree; it is gone when this returns, by whomever.

    The caller owns the parent directory and nobody else may write there; no process uses the tree
    any more. Links are removed, never followed; a mounted file system stops it. Raises OSError.
    """
    for rounds_left in reversed(range(ROUNDS)):
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            return
        try:
            _remove(path, is_directory=stat.S_ISDIR(mode))
            return
        except FileNotFoundError:
            if rounds_left == 0:  # something in it went, and the rest may be there yet
                raise


def _remove(path: Path, *, is_directory: bool) -> None:
    if not is_directory:
        os.unlink(path)
        return
    with open_cursor(path) as cursor:
        _empty(cursor)
    os.rmdir(path)


@dataclass(slots=True)
class _Level:
    """Directories that are to be removed from one directory; whether these are all."""

    directories: list[str]
    whole: bool


def _empty(cursor: TreeCursor) -> None:
    way: list[str] = []
    pending = [_unlink_files(cursor.fd)]
    while True:
        level = pending[-1]
        if level.directories:
            name = level.directories.pop()
            cursor.enter(name)
            way.append(name)
            pending.append(_unlink_files(cursor.fd))
            continue
        if not level.whole:  # what was listed is gone, so the next look finds others
            pending[-1] = _unlink_files(cursor.fd)
            continue
        pending.pop()
        if not pending:
            return
        cursor.leave()
        os.rmdir(way.pop(), dir_fd=cursor.fd)


def _unlink_files(directory_fd: int) -> _Level:
    """Unlink what is no directory among the next names; return the directories among them."""
    with os.scandir(directory_fd) as entries:
        listed = [
            (entry.name, entry.is_dir(follow_symlinks=False))
            for entry in itertools.islice(entries, NAMES_MAX)
        ]
    for name, is_directory in listed:
        if not is_directory:
            os.unlink(name, dir_fd=directory_fd)
    directories = [name for name, is_directory in listed if is_directory]
    return _Level(directories, whole=len(listed) < NAMES_MAX)
