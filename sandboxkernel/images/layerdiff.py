"""What a user layer changes: overlayfs's upper directory against the layers underneath.

The upper directory is the user's to fill. Only directories are opened, never through a link, and
nothing is read but names, stat(2) and one extended attribute (Linux, overlayfs.rst, "whiteouts
and opaque directories").
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sandboxkernel.images.treewalk import TreeCursor, open_cursor
from sandboxkernel.models import UserLayerChange

__all__ = ["DEPTH_MAX", "ENTRIES_MAX", "diff_layer", "show_path"]

# Entries looked at, and names held, of a whole layer; what lies beyond is not reported. A hard link
# takes a dozen bytes of disk, and its name in our memory many times that.
ENTRIES_MAX = 500_000
DEPTH_MAX = 256  # directories; deeper trees are reported by their top only
_OPAQUE_XATTR = "trusted.overlay.opaque"

_Change = Literal["A", "C", "D"]


@dataclass(slots=True)
class _Level:
    """One directory of the upper tree during the walk.

    `lower` are the directories that it covers, highest layer first. `held` is its own change,
    not reported unless something inside is: an empty directory of container root is a mount
    point, which we made.
    """

    names: list[str]
    lower: tuple[Path, ...]
    held: UserLayerChange | None = None
    path: str = ""


@dataclass(slots=True)
class _Walk:
    limit: int
    root_uid: int
    changes: list[UserLayerChange] = field(default_factory=list)
    levels: list[_Level] = field(default_factory=list)
    left: int = field(default_factory=lambda: ENTRIES_MAX)

    def names(self, directory_fd: int) -> list[str]:
        """Names in a directory, last first, as many as may still be looked at."""
        with os.scandir(directory_fd) as entries:
            found = [entry.name for entry in itertools.islice(entries, self.left)]
        self.left -= len(found)
        return sorted(found, reverse=True)

    def report(self, path: str, change: _Change, size: int = 0) -> None:
        for level in self.levels:
            if level.held is not None:
                self.changes.append(level.held)
                level.held = None
        self.changes.append(UserLayerChange(path=show_path(path), change=change, size_bytes=size))

    @property
    def is_full(self) -> bool:
        return len(self.changes) >= self.limit


def diff_layer(
    upper: Path, layer_dirs: Sequence[Path], *, host_uid_base: int, limit: int
) -> list[UserLayerChange]:
    """At most `limit` changes, sorted by path within each directory; `layer_dirs` lowest first.

    A tree that changes meanwhile gives what was seen until then.
    """
    walk = _Walk(limit, host_uid_base)
    try:
        with open_cursor(upper) as cursor:
            _run(walk, cursor, tuple(reversed(layer_dirs)))
    except OSError as exc:
        if exc.errno not in (errno.ESTALE, errno.EXDEV, errno.ENOENT):
            raise
    return walk.changes[:limit]


def show_path(path: str) -> str:
    """A path as one printable line; a backslash starts an escape, as in repr().

    Of no two paths the same. What is not printable includes characters that turn the direction of
    a line, or take no room in it: a name must not be shown as another.
    """
    shown = []
    for character in os.fsencode(path).decode("utf-8", "surrogateescape"):
        code = ord(character)
        if character == "\\":
            shown.append("\\\\")
        elif 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8
            shown.append(f"\\x{code - 0xDC00:02x}")
        elif character.isprintable():
            shown.append(character)
        elif code < 0x80:
            shown.append(f"\\x{code:02x}")
        else:
            shown.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return "".join(shown)


def _run(walk: _Walk, cursor: TreeCursor, lower: tuple[Path, ...]) -> None:
    walk.levels.append(_Level(walk.names(cursor.fd), lower))
    while walk.levels and not walk.is_full:
        level = walk.levels[-1]
        if not level.names:
            walk.levels.pop()
            if walk.levels:
                cursor.leave()
            continue
        name = level.names.pop()
        try:
            status = os.lstat(name, dir_fd=cursor.fd)
        except FileNotFoundError:
            continue  # a running sandbox removed it
        path = f"{level.path}/{name}"
        if stat.S_ISDIR(status.st_mode):
            _enter(walk, cursor, name, path, status)
        elif stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            walk.report(path, "D")
        else:
            exists, _ = _look_below(level.lower, name)
            walk.report(path, "C" if exists else "A", status.st_size)


def _enter(walk: _Walk, cursor: TreeCursor, name: str, path: str, status: os.stat_result) -> None:
    exists, lower = _look_below(walk.levels[-1].lower, name)
    change: _Change | None = None if lower else ("C" if exists else "A")
    held = None
    if change is not None:
        if status.st_uid == walk.root_uid:
            held = UserLayerChange(path=show_path(path), change=change)
        else:
            walk.report(path, change)
    if len(walk.levels) >= DEPTH_MAX:
        return
    try:
        cursor.enter(name)
    except (FileNotFoundError, NotADirectoryError):
        return  # a running sandbox replaced it
    names = walk.names(cursor.fd)
    level = _Level(names, lower, held, path)
    walk.levels.append(level)
    if lower and walk.left and _is_opaque(cursor.fd):
        level.lower = ()
        own = set(names)
        for gone in sorted({n for directory in lower for n in os.listdir(directory)} - own):
            walk.report(f"{path}/{gone}", "D")


def _look_below(directories: tuple[Path, ...], name: str) -> tuple[bool, tuple[Path, ...]]:
    """Whether lower layers have `name`, and the directories that it merges with."""
    merged: list[Path] = []
    for directory in directories:
        try:
            status = os.lstat(directory / name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if stat.S_ISDIR(status.st_mode):
            merged.append(directory / name)
            continue
        whiteout = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
        if not merged:
            return not whiteout, ()
        break
    return bool(merged), tuple(merged)


def _is_opaque(directory_fd: int) -> bool:
    try:
        return os.getxattr(directory_fd, _OPAQUE_XATTR) in (b"y", b"x")
    except OSError as exc:
        if exc.errno in (errno.ENODATA, errno.ENOTSUP, errno.EPERM):
            return False
        raise
