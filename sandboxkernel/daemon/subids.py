"""Subordinate ids (subuid(5)): one person's, as many users as they like. Effectful: one file.

Whoever has some can call with any of 65536 uids (newuidmap(1)), and each would have connections,
kernels and an id range of its own; the latter are given out for good.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["SubordinateIds"]


class SubordinateIds:
    """Whose a uid is. The file is read again when it has changed."""

    def __init__(self, path: Path = Path("/etc/subuid")) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._ranges: list[tuple[int, int, str]] = []

    def owner_of(self, uid: int) -> str | None:
        """The name or uid of the person whom a subordinate id belongs to; None for a user."""
        self._refresh()
        return next((owner for first, end, owner in self._ranges if first <= uid < end), None)

    def _refresh(self) -> None:
        try:
            info = os.stat(self._path)
            stamp = (info.st_ino, info.st_mtime_ns)
            if stamp != self._stamp:
                self._ranges = list(filter(None, map(_range_of, self._path.open(errors="replace"))))
                self._stamp = stamp
        except FileNotFoundError:
            self._ranges, self._stamp = [], None


def _range_of(line: str) -> tuple[int, int, str] | None:
    owner, _, rest = line.strip().partition(":")
    first, _, count = rest.partition(":")
    if not (first.isdecimal() and count.isdecimal()):
        return None  # newuidmap(1) passes over such lines, too
    return int(first), int(first) + int(count), owner
