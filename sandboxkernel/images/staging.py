"""Writers of an image store: what is being made lives in a locked directory until it is whole.

A directory below `tmp/` belongs to the process that holds the lock on its file `lock`; one that
nobody holds is what a killed writer left, and is deleted by the next.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sandboxkernel.errors import ImageError, ResourcesExhausted, SandboxError
from sandboxkernel.images.digest import Digest
from sandboxkernel.images.layers import TarResult
from sandboxkernel.images.removal import remove_tree

__all__ = [
    "FULL_DISK",
    "Stage",
    "clean_stages",
    "hash_file",
    "hold_lock",
    "stage",
    "storage_errors",
    "sync_directory",
]

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_LOCK_NAME = "lock"


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock (flock(2)) among processes and threads; waits for it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Turn errors of the file system into the product's, once, at the border."""
    try:
        yield
    except SandboxError:
        raise
    except OSError as exc:
        if exc.errno in FULL_DISK:
            raise ResourcesExhausted(
                f"cannot {doing}: no space left in the image store",
                hint="remove images that nobody uses: sandboxkernel image prune",
            ) from exc
        raise ImageError(f"cannot {doing}: {exc.strerror or exc}") from exc


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Stage:
    """Blobs and trees that are being made. Owned by one writer; made by `stage`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.blobs: dict[Digest, Path] = {}
        self.trees: dict[Digest, Path] = {}
        self._count = 0

    def new_path(self, kind: str) -> Path:
        """A path that does not exist yet, on the store's file system."""
        self._count += 1
        return self.directory / f"{kind}-{self._count}"

    def put(self, content: bytes) -> Digest:
        """Write a small blob; durable when this returns."""
        path = self.new_path("blob")
        with open(path, "xb") as file:
            file.write(content)
            _finish(file)
        digest = Digest(hashlib.sha256(content).hexdigest())
        self.blobs[digest] = path
        return digest

    def write(self, make: Callable[[BinaryIO], TarResult]) -> TarResult:
        """Let `make` write a blob and say what it hashed to; durable when this returns."""
        path = self.new_path("blob")
        with open(path, "xb", buffering=1024 * 1024) as file:
            result = make(file)
            _finish(file)
        self.blobs[result.digest] = path
        return result

    def adopt_tree(self, diff_id: Digest, tree: Path) -> None:
        """Take a finished tree of this stage as the unpacked form of a layer."""
        self.trees[diff_id] = tree


@contextmanager
def stage(root: Path) -> Iterator[Stage]:
    """A new stage below `root`; whatever was not moved out of it is deleted at the end."""
    directory = Path(tempfile.mkdtemp(prefix="w", dir=root))
    lock_fd = os.open(directory / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
        yield Stage(directory)
    finally:
        remove_tree(directory)
        os.close(lock_fd)


def clean_stages(root: Path) -> list[Path]:
    """Delete what killed writers left, and what a removal could not finish; return their paths.

    The caller holds the store's lock, so that no stage is between mkdtemp and its lock.
    """
    removed = []
    for entry in sorted(root.iterdir()):
        if not _is_held(entry / _LOCK_NAME):
            remove_tree(entry)
            removed.append(entry)
    return removed


def _is_held(lock: Path) -> bool:
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _finish(file: BinaryIO) -> None:
    file.flush()
    os.fchmod(file.fileno(), 0o444)
    os.fsync(file.fileno())


def hash_file(path: Path) -> tuple[str, int]:
    """Digest (as text) and size in bytes of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return f"sha256:{digest}", os.fstat(file.fileno()).st_size
