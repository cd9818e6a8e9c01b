"""Deterministic layer tars: the same tree gives the same bytes, whenever and wherever.

Entries are sorted, times are clamped to one epoch, owners are numbers, the format is PAX
(OCI image-spec, layer.md). Walks by file descriptors and never follows a symbolic link.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sandboxkernel.errors import ImageError
from sandboxkernel.images.digest import Digest

__all__ = ["LAYER_EPOCH", "HashingWriter", "TarResult", "digest_tree", "write_layer_tar"]

# 2020-01-01T00:00:00Z, seconds. Not 0: zip files, and so wheels, cannot hold times before 1980.
LAYER_EPOCH = 1_577_836_800
_COPY_BUFFER_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class TarResult:
    """Digest, size in bytes and number of entries of a written tar."""

    digest: Digest
    size: int
    entries: int


class HashingWriter:
    """A file that only takes writes; passes them on (or drops them) and hashes them."""

    def __init__(self, target: BinaryIO | None) -> None:
        self._target = target
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        """Take `data`; errors are those of the target."""
        if self._target is not None:
            self._target.write(data)
        self._hash.update(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        """Bytes written so far."""
        return self.size

    def digest(self) -> Digest:
        """Digest of what was written so far."""
        return Digest(self._hash.hexdigest())


def write_layer_tar(
    tree: Path, target: BinaryIO | None, *, progress: Callable[[int], None] | None = None
) -> TarResult:
    """Write a tree as a layer and return its digest; without a target only compute it.

    `progress` gets the number of entries done, now and then. Raises ImageError for an entry that
    has no place in a layer (device, socket, fifo) and OSError of the file system.
    """
    writer = HashingWriter(target)
    count = 0
    with tarfile.TarFile(
        fileobj=writer,  # type: ignore[arg-type]  # only write() and tell() are used
        mode="w",
        format=tarfile.PAX_FORMAT,
        copybufsize=_COPY_BUFFER_BYTES,
    ) as tar:
        for name, info, file_fd in _members(tree):
            if file_fd is None:
                tar.addfile(info)
            else:
                with open(file_fd, "rb", closefd=True) as content:
                    tar.addfile(info, content)
            count += 1
            if progress is not None and count % 512 == 0:
                progress(count)
            del name
    return TarResult(writer.digest(), writer.size, count)


def digest_tree(tree: Path) -> Digest:
    """The digest that the tree's layer tar would have: compared with the diff_id, it verifies."""
    return write_layer_tar(tree, None).digest


def _members(tree: Path) -> Iterator[tuple[str, tarfile.TarInfo, int | None]]:
    """Sorted entries below `tree` with an open descriptor for regular files (the taker closes)."""
    pending = [""]
    while pending:
        relative = pending.pop()
        if relative:
            status = os.lstat(tree / relative)
            info = _tar_info(tree, relative, status)
            file_fd = None
            if stat.S_ISREG(status.st_mode):
                file_fd = os.open(tree / relative, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            yield relative, info, file_fd
            if not stat.S_ISDIR(status.st_mode):
                continue
        prefix = f"{relative}/" if relative else ""
        names = sorted(os.listdir(tree / relative), reverse=True)
        pending.extend(prefix + name for name in names)


def _tar_info(tree: Path, relative: str, status: os.stat_result) -> tarfile.TarInfo:
    info = tarfile.TarInfo(relative)
    info.mode = stat.S_IMODE(status.st_mode)
    info.uid, info.gid = status.st_uid, status.st_gid
    info.mtime = LAYER_EPOCH
    if stat.S_ISDIR(status.st_mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(status.st_mode):
        info.type = tarfile.SYMTYPE
        info.mode = 0o777
        info.linkname = os.readlink(tree / relative)
    elif stat.S_ISREG(status.st_mode):
        info.size = status.st_size
    else:
        raise ImageError(f"cannot put {relative!r} into a layer: not a file, directory or link")
    return info
