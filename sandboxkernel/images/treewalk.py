"""Walk trees that somebody hostile may have filled: endlessly deep, unreadable, changing.

One directory is open at a time; the way back is "..", checked against the directory that it has
to be. So neither paths, nor descriptors, nor Python's stack grow with the depth, and a directory
that is moved away during the walk ends the walk instead of leading it out of the tree.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["TreeCursor", "TreeUsage", "measure_tree", "open_cursor", "subdirectories"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_BLOCK_BYTES = 512  # unit of st_blocks, stat(2)
_ENTRIES_MAX = 20_000_000  # no tree that we make room for has more
LINKED_MAX = 500_000  # files with several names that are remembered


class TreeCursor:
    """A place in a tree. `fd` is the open directory, borrowed; `depth` is 0 at the top."""

    def __init__(self, top_fd: int) -> None:
        self.fd = top_fd
        status = os.fstat(top_fd)
        self._device = status.st_dev
        self._way = [(status.st_dev, status.st_ino)]

    @property
    def depth(self) -> int:
        """How far below the top the cursor is."""
        return len(self._way) - 1

    def enter(self, name: str) -> None:
        """Go down into a directory, not through a link and not to another file system."""
        fd = os.open(name, _DIRECTORY, dir_fd=self.fd)
        status = os.fstat(fd)
        if status.st_dev != self._device:
            os.close(fd)
            raise OSError(errno.EXDEV, "another file system is mounted in the tree", name)
        self._way.append((status.st_dev, status.st_ino))
        self._replace(fd)

    def leave(self) -> None:
        """Go up. Raises OSError with ESTALE when the directory was moved meanwhile."""
        fd = os.open("..", _DIRECTORY, dir_fd=self.fd)
        status = os.fstat(fd)
        self._way.pop()
        if (status.st_dev, status.st_ino) != self._way[-1]:
            os.close(fd)
            raise OSError(errno.ESTALE, "the tree was rearranged while it was read")
        self._replace(fd)

    def close(self) -> None:
        """Close the open directory."""
        os.close(self.fd)

    def _replace(self, fd: int) -> None:
        os.close(self.fd)
        self.fd = fd


@contextmanager
def open_cursor(path: Path) -> Iterator[TreeCursor]:
    """A cursor at the top of a tree, whose parent directories are the caller's own."""
    cursor = TreeCursor(os.open(path, _DIRECTORY))
    try:
        yield cursor
    finally:
        cursor.close()


def subdirectories(directory_fd: int) -> list[str]:
    """Names of the directories in a directory; links are no directories."""
    with os.scandir(directory_fd) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


@dataclass(frozen=True, slots=True)
class TreeUsage:
    """Allocated bytes (st_blocks), entries, and the newest change in seconds since the epoch.

    `complete` is false when the tree was rearranged under the walk.
    """

    size_bytes: int
    entries: int
    modified_at: float
    complete: bool = True


class _Tally:
    def __init__(self) -> None:
        self.size = 0
        self.entries = 0
        self.newest = 0.0
        self._linked: set[int] = set()  # inodes; a walk stays in one file system

    def add(self, status: os.stat_result, *, is_directory: bool) -> None:
        self.entries += 1
        self.newest = max(self.newest, status.st_ctime)
        size = status.st_blocks * _BLOCK_BYTES
        if status.st_nlink > 1 and not is_directory:
            if status.st_ino in self._linked:
                return
            if len(self._linked) < LINKED_MAX:
                self._linked.add(status.st_ino)
            else:  # each of its names for its share, so that all of them make the whole
                size //= status.st_nlink
        self.size += size


def measure_tree(path: Path) -> TreeUsage:
    """What a tree or file occupies; hard links count once, a missing tree is empty."""
    tally = _Tally()
    complete = True
    try:
        top = os.lstat(path)
        tally.add(top, is_directory=True)
        with open_cursor(path) as cursor:
            _measure(cursor, tally)
    except FileNotFoundError:
        pass  # deleted meanwhile: it occupies nothing
    except NotADirectoryError:
        pass  # a single file, counted above
    except OSError as exc:
        if exc.errno not in (errno.ESTALE, errno.EXDEV, errno.ELOOP):
            raise
        complete = False
    return TreeUsage(tally.size, tally.entries, tally.newest, complete)


def _measure(cursor: TreeCursor, tally: _Tally) -> None:
    pending = [_tally_directory(cursor.fd, tally)]
    while pending:
        if not pending[-1]:
            pending.pop()
            if pending:
                cursor.leave()
            continue
        try:
            cursor.enter(pending[-1].pop())
        except (FileNotFoundError, NotADirectoryError):
            continue  # a running sandbox changed it
        pending.append(_tally_directory(cursor.fd, tally))


def _tally_directory(directory_fd: int, tally: _Tally) -> list[str]:
    directories = []
    with os.scandir(directory_fd) as entries:
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # a running sandbox removed it
            is_directory = entry.is_dir(follow_symlinks=False)
            tally.add(status, is_directory=is_directory)
            if is_directory and tally.entries < _ENTRIES_MAX:
                directories.append(entry.name)
    return directories
