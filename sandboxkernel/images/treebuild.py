"""Make a planned tree on disk. Effects only; what is made was decided in a TreePlan."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from sandboxkernel.errors import ImageError
from sandboxkernel.images.layers import LAYER_EPOCH
from sandboxkernel.images.treeplan import CopiedFile, Directory, GeneratedFile, Symlink, TreePlan

__all__ = ["build_tree", "normalise_times"]

_FILE_MODE = 0o644
_PROGRAM_MODE = 0o755
_PROGRESS_STEP = 256


def build_tree(plan: TreePlan, tree: Path, *, progress: Callable[[int, int], None]) -> None:
    """Make every entry of `plan` below `tree`, which is created with mode 0755.

    Owned by root, never setuid, setgid, or writable by group or others (a planned sticky
    directory excepted). Raises ImageError when a planned file is not what it was.
    """
    tree.mkdir(mode=0o755)
    tree.chmod(0o755)
    total = len(plan)
    for count, (path, entry) in enumerate(plan.items(), start=1):
        destination = f"{tree}{path}"
        if isinstance(entry, Directory):
            _make_directory(destination, entry)
        elif isinstance(entry, Symlink):
            os.symlink(entry.target, destination)
        elif isinstance(entry, GeneratedFile):
            with open(_create(destination, executable=entry.executable), "wb") as file:
                file.write(entry.content)
        else:
            _copy(entry, destination)
        if count % _PROGRESS_STEP == 0:
            progress(count, total)
    progress(total, total)


def normalise_times(tree: Path) -> None:
    """Give everything the layer epoch, so that times tell nothing about the host."""
    times = (LAYER_EPOCH, LAYER_EPOCH)
    for directory, subdirectories, files in os.walk(tree, topdown=False):
        for name in (*files, *subdirectories):
            os.utime(os.path.join(directory, name), times, follow_symlinks=False)
    os.utime(tree, times)


def _make_directory(destination: str, entry: Directory) -> None:
    os.mkdir(destination)
    if entry.uid or entry.gid:
        os.chown(destination, entry.uid, entry.gid)
    os.chmod(destination, entry.mode)  # after mkdir, whose mode the umask cuts


def _create(destination: str, *, executable: bool) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(destination, flags, 0o600)
    os.fchmod(fd, _PROGRAM_MODE if executable else _FILE_MODE)
    return fd


def _copy(entry: CopiedFile, destination: str) -> None:
    try:
        source_fd = os.open(entry.source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        raise ImageError(f"cannot copy {entry.source}: {exc.strerror}") from exc
    try:
        status = os.fstat(source_fd)
        # Looked at again on the open file: the plan's look may be outdated.
        if not stat.S_ISREG(status.st_mode) or not status.st_mode & stat.S_IROTH:
            raise ImageError(f"cannot copy {entry.source}: not a world-readable regular file")
        target_fd = _create(destination, executable=entry.executable)
        try:
            # copy_file_range(2) shares blocks where the file system can, and copies otherwise.
            while os.copy_file_range(source_fd, target_fd, 1 << 30):
                pass
        finally:
            os.close(target_fd)
    finally:
        os.close(source_fd)
