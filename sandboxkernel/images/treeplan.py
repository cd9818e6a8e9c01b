"""What a layer shall contain, decided before anything is copied. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

from sandboxkernel.errors import ImageError

__all__ = ["CopiedFile", "Directory", "Entry", "GeneratedFile", "Symlink", "TreePlan"]


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory; `mode` has permission and sticky bits only."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class CopiedFile:
    """A copy of the host's regular file `source`."""

    source: str
    executable: bool = False


@dataclass(frozen=True, slots=True)
class GeneratedFile:
    """A file whose content we made."""

    content: bytes
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Symlink:
    """A symbolic link."""

    target: str


Entry = Directory | CopiedFile | GeneratedFile | Symlink


class TreePlan:
    """Entries of a tree by absolute path. The first entry of a path stays.

    Parents are added as directories of mode 0755 that belong to root, whatever they are on the
    host: an interpreter below a directory that only root may enter must be reachable in the image.
    """

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self.sources: set[str] = set()  # of copied files

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, path: str) -> Entry | None:
        """The entry at a path, if any."""
        return self._entries.get(path)

    def add(self, path: str, entry: Entry) -> None:
        """Plan an entry. Raises ImageError for a path not plain, or below a non-directory."""
        if not path.startswith("/") or posixpath.normpath(path) != path or "\0" in path:
            raise ImageError(f"cannot plan {path!r}: not a plain absolute path")
        if path in self._entries:
            return
        missing = []
        parent = posixpath.dirname(path)
        while parent != "/" and not isinstance(self._entries.get(parent), Directory):
            if parent in self._entries:
                raise ImageError(f"cannot plan {path!r}: {parent} is not a directory")
            missing.append(parent)
            parent = posixpath.dirname(parent)
        for ancestor in reversed(missing):
            self._entries[ancestor] = Directory()
        self._entries[path] = entry
        if isinstance(entry, CopiedFile):
            self.sources.add(entry.source)

    def items(self) -> Iterator[tuple[str, Entry]]:
        """Entries sorted by path components, so that a directory precedes what is in it."""
        yield from sorted(self._entries.items(), key=lambda item: item[0].split("/"))

    def files(self) -> Iterator[tuple[str, CopiedFile]]:
        """Copied files, sorted."""
        for path, entry in self.items():
            if isinstance(entry, CopiedFile):
                yield path, entry
