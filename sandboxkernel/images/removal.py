"""Delete trees that somebody hostile may have filled: deep, unreadable, changing.

Works with directory descriptors, never follows a symbolic link, never recurses in Python, and
keeps a bounded number of descriptors open. Nothing is created, so it works on a full disk.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

__all__ = ["remove_tree", "tree_usage"]

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK_BYTES = 512  # unit of st_blocks, stat(2)
_DEPTH_MAX = 2_000  # flattened below that, so that open directories stay few


def remove_tree(path: Path) -> None:
    """Remove a file or tree; what is already gone is fine.

    The caller owns the parent directory and nobody else may write there. Raises OSError.
    """
    parent_fd = os.open(path.parent, _OPEN_DIRECTORY)
    try:
        _remove(parent_fd, path.name)
    except FileNotFoundError:
        pass  # somebody else removed it, which is what we want
    finally:
        os.close(parent_fd)


def _remove(parent_fd: int, name: str) -> None:
    """Remove `name`; directories met inside are moved up to be children of it, then emptied.

    Moving up keeps the depth at two, so that neither path lengths nor descriptors run out on a
    tree that is a hundred thousand levels deep.
    """
    if not stat.S_ISDIR(os.lstat(name, dir_fd=parent_fd).st_mode):
        os.unlink(name, dir_fd=parent_fd)
        return
    top_fd = _open_directory(name, parent_fd)
    moved = 0
    try:
        # Every round empties the directories found at the top; their subdirectories are moved up
        # to the top for the next round.
        while True:
            children = _unlink_files(top_fd)
            if not children:
                break
            for child in children:
                moved = _empty_into(top_fd, child, moved)
                os.rmdir(child, dir_fd=top_fd)
    finally:
        os.close(top_fd)
    os.rmdir(name, dir_fd=parent_fd)


def _empty_into(top_fd: int, child: str, moved: int) -> int:
    """Empty `child`, moving its subdirectories up beside it under names of ours."""
    child_fd = _open_directory(child, top_fd)
    try:
        for grandchild in _unlink_files(child_fd):
            while True:
                moved += 1
                try:
                    os.rename(grandchild, f".{moved}", src_dir_fd=child_fd, dst_dir_fd=top_fd)
                    break
                except OSError as exc:
                    # The name is taken by something of the tree's own: try the next number.
                    if exc.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                        raise
    finally:
        os.close(child_fd)
    return moved


def _open_directory(name: str, parent_fd: int) -> int:
    return os.open(name, _OPEN_DIRECTORY, dir_fd=parent_fd)


def _unlink_files(directory_fd: int) -> list[str]:
    """Unlink everything that is no directory; return the directories."""
    directories = []
    with os.scandir(directory_fd) as entries:
        listed = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in listed:
        if is_directory:
            directories.append(name)
        else:
            os.unlink(name, dir_fd=directory_fd)
    return directories


@dataclass(frozen=True, slots=True)
class TreeUsage:
    """Allocated bytes (st_blocks), number of entries and the newest st_ctime in seconds."""

    size_bytes: int
    entries: int
    modified_at: float


def tree_usage(path: Path) -> TreeUsage:
    """What a tree occupies; hard links count once. A missing tree occupies nothing."""
    size, entries, newest = 0, 0, 0.0
    seen: set[tuple[int, int]] = set()
    try:
        walk = os.fwalk(path, follow_symlinks=False)
        for _, directories, files, directory_fd in walk:
            status = os.fstat(directory_fd)
            size += status.st_blocks * _BLOCK_BYTES
            newest = max(newest, status.st_ctime)
            entries += 1
            names = [*files, *(d for d in directories if _is_link(d, directory_fd))]
            for name in names:
                try:
                    status = os.lstat(name, dir_fd=directory_fd)
                except FileNotFoundError:
                    continue  # the sandbox that owns it is running
                entries += 1
                newest = max(newest, status.st_ctime)
                if status.st_nlink > 1:
                    key = (status.st_dev, status.st_ino)
                    if key in seen:
                        continue
                    seen.add(key)
                size += status.st_blocks * _BLOCK_BYTES
    except FileNotFoundError:
        pass
    return TreeUsage(size, entries, newest)


def _is_link(name: str, directory_fd: int) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(name, dir_fd=directory_fd).st_mode)
    except FileNotFoundError:
        return False
