"""The mounts of a container: a pure plan, and one loop that carries it out in the child."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sandboxruntime import syscalls
from sandboxruntime.spec import (
    HAND_OVER_DIR,
    MASKED_PATHS,
    READ_ONLY_PATHS,
    UNMASKED_PROC,
    Spec,
)
from sandboxruntime.syscalls import (
    AT_EMPTY_PATH,
    MountAttr,
    MoveMountFlag,
    OpenTreeFlag,
    Resolve,
)

__all__ = [
    "ATTRIBUTE_WORDS",
    "DEVICES",
    "DEVICE_ATTRIBUTES",
    "Attach",
    "Device",
    "Directory",
    "FileSystem",
    "Mask",
    "MountOp",
    "Moved",
    "ReadOnly",
    "Symlink",
    "apply_mounts",
    "plan_masks",
    "plan_mounts",
    "plan_proc",
    "refuse_links",
]

# name -> (major, minor), checked before the node is used: an image or a race must not be able
# to put another file in its place (CVE-2025-31133).
DEVICES: Mapping[str, tuple[int, int]] = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
# As mountinfo (proc_pid_mountinfo(5)) and OCI's options of mounts call them.
ATTRIBUTE_WORDS: Mapping[MountAttr, str] = {
    MountAttr.NOSUID: "nosuid",
    MountAttr.NODEV: "nodev",
    MountAttr.NOEXEC: "noexec",
    MountAttr.RDONLY: "ro",
}
# Of a device, and of the null device that masks a file: all that a device works without.
DEVICE_ATTRIBUTES = MountAttr.NOSUID | MountAttr.NOEXEC
PTYS_MAX = 64
_SAFE = MountAttr.NOSUID | MountAttr.NODEV
_PROC = _SAFE | MountAttr.NOEXEC
_CLONE = OpenTreeFlag.CLONE | OpenTreeFlag.CLOEXEC
_MOVE = MoveMountFlag.F_EMPTY_PATH | MoveMountFlag.T_EMPTY_PATH
_INSIDE = Resolve.IN_ROOT | Resolve.NO_SYMLINKS | Resolve.NO_MAGICLINKS


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A new file system at `destination`, an existing or to be made directory."""

    fstype: str
    destination: str
    options: tuple[tuple[str, str | None], ...] = ()
    attributes: MountAttr = _SAFE


@dataclass(frozen=True, slots=True)
class Attach:
    """A detached mount that the launcher made, by its place in the spec's binds."""

    bind: int
    destination: str


@dataclass(frozen=True, slots=True)
class Moved:
    """A mount of this namespace, with all that is mounted on it, to be at `destination` instead."""

    mount_fd: int
    destination: str


@dataclass(frozen=True, slots=True)
class Device:
    """The host's /dev/NAME at /dev/NAME inside."""

    name: str


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory, made if missing, with mode and owner (inside ids)."""

    path: str
    mode: int = 0o755
    owner: int = 0


@dataclass(frozen=True, slots=True)
class Symlink:
    """A symbolic link inside."""

    path: str
    target: str


@dataclass(frozen=True, slots=True)
class Mask:
    """Cover a path: a file by /dev/null, a directory by an empty read-only tmpfs."""

    path: str


@dataclass(frozen=True, slots=True)
class ReadOnly:
    """Make a path and what is below it read-only."""

    path: str


PROC = FileSystem("proc", "/proc", (), _PROC)
MountOp = FileSystem | Attach | Moved | Device | Directory | Symlink | Mask | ReadOnly


def plan_mounts(spec: Spec) -> list[MountOp]:
    """Everything below the root, parents before children. Pure."""
    uid = spec.process.uid
    operations: list[MountOp] = [
        PROC,
        FileSystem("tmpfs", "/dev", (("mode", "0755"), ("size", "64k"), ("nr_inodes", "64")),
                   MountAttr.NOSUID | MountAttr.NOEXEC),
        *(Device(name) for name in DEVICES),
        FileSystem(
            "devpts",
            "/dev/pts",
            (("newinstance", None), ("ptmxmode", "0666"), ("mode", "0620"), ("max", str(PTYS_MAX))),
            MountAttr.NOSUID | MountAttr.NOEXEC,
        ),
        Symlink("/dev/ptmx", "pts/ptmx"),
        Symlink("/dev/fd", "/proc/self/fd"),
        Symlink("/dev/stdin", "/proc/self/fd/0"),
        Symlink("/dev/stdout", "/proc/self/fd/1"),
        Symlink("/dev/stderr", "/proc/self/fd/2"),
        FileSystem("tmpfs", "/dev/shm",
                   (("mode", "1777"), ("size", str(spec.shm_bytes)), ("nr_inodes", "8192"))),
        FileSystem("mqueue", "/dev/mqueue", (), _PROC),
        FileSystem("tmpfs", "/tmp",
                   (("mode", "1777"), ("size", str(spec.tmp_bytes)), ("nr_inodes", "65536"))),
        FileSystem("tmpfs", "/run", (("mode", "0755"), ("size", "16m"), ("nr_inodes", "4096"))),
        Directory(HAND_OVER_DIR, 0o700, uid),
    ]  # fmt: skip
    if spec.zygote:
        operations += [
            Directory(UNMASKED_PROC, 0o700),
            FileSystem("proc", f"{UNMASKED_PROC}/proc", (), _PROC),
        ]
    indexed = sorted(enumerate(spec.binds), key=lambda item: item[1].destination.count("/"))
    for index, bind in indexed:
        operations.append(Attach(index, bind.destination))
        operations += [Mask(f"{bind.destination}/{name}") for name in bind.masked]
    return operations


def plan_proc() -> list[MountOp]:
    """The first of plan_mounts(), and what plan_masks() plans below it by default. Pure."""
    return [
        PROC,
        *(Mask(path) for path in MASKED_PATHS if path.startswith("/proc/")),
        *(ReadOnly(path) for path in READ_ONLY_PATHS if path.startswith("/proc/")),
    ]


def plan_masks(spec: Spec) -> list[MountOp]:
    """Masked and read-only paths, in that order. Pure."""
    return [
        *(Mask(path) for path in spec.masked_paths),
        *(ReadOnly(path) for path in spec.read_only_paths),
    ]


def apply_mounts(operations: list[MountOp], root_fd: int, bind_fds: list[int]) -> None:
    """Carry out a plan below `root_fd`, an attached mount. Every path is resolved beneath it."""
    for operation in operations:
        try:
            _apply(operation, root_fd, bind_fds)
        except OSError as exc:
            exc.add_note(str(operation))
            raise


def refuse_links(operations: Iterable[MountOp], root_fd: int) -> None:
    """Raise OSError (ELOOP) where a mount point of a plan is, or lies behind, a symbolic link.

    For runtimes that would follow it: runc makes the links of /dev by a path of the host's, and so
    on the host where an image's /dev leads there (CVE-2026-41579). Nobody adds a link to the root
    between check and use: that takes root inside, which nothing in a container is.
    """
    places = [op.destination for op in operations if isinstance(op, FileSystem | Attach)]
    for place in places:
        if any(place.startswith(f"{other}/") for other in places):
            continue  # below a mount that covers what the root has there
        try:
            os.close(_open_beneath(root_fd, place))
        except FileNotFoundError:
            continue
        except OSError as exc:
            exc.add_note(f"{place} of the image or the layer")
            raise


def _apply(operation: MountOp, root_fd: int, bind_fds: list[int]) -> None:
    match operation:
        case FileSystem():
            _mount_file_system(operation, root_fd)
        case Attach():
            _attach(bind_fds[operation.bind], root_fd, operation.destination)
        case Moved():
            _attach(operation.mount_fd, root_fd, operation.destination)
        case Device():
            _attach_device(operation.name, root_fd)
        case Directory():
            fd = _make_directories(root_fd, operation.path)
            try:
                os.chmod(f"/proc/self/fd/{fd}", operation.mode)  # fchmod refuses O_PATH
                os.chown(f"/proc/self/fd/{fd}", operation.owner, operation.owner)
            finally:
                os.close(fd)
        case Symlink():
            parent, _, name = operation.path.rpartition("/")
            fd = _open_beneath(root_fd, parent)
            try:
                os.symlink(operation.target, name, dir_fd=fd)
            finally:
                os.close(fd)
        case Mask():
            _mask(operation.path, root_fd)
        case ReadOnly():
            _make_read_only(operation.path, root_fd)


def _open_beneath(root_fd: int, path: str) -> int:
    return syscalls.openat2(root_fd, path.lstrip("/") or ".", os.O_PATH, resolve=_INSIDE)


def _make_directories(root_fd: int, path: str) -> int:
    """Mkdir -p beneath the root, following no symbolic link. Returns an O_PATH descriptor."""
    fd = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_fd)
    for part in path.strip("/").split("/"):
        try:
            os.mkdir(part, 0o755, dir_fd=fd)
        except FileExistsError:
            pass  # the open below refuses anything that is not a directory
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            child = os.open(part, flags, dir_fd=fd)
        finally:
            os.close(fd)
        fd = child
    return fd


def _attach(mount_fd: int, root_fd: int, destination: str) -> None:
    target = _make_directories(root_fd, destination)
    try:
        syscalls.move_mount(mount_fd, "", target, "", _MOVE)
    finally:
        os.close(target)


def _mount_file_system(operation: FileSystem, root_fd: int) -> None:
    fs_fd = syscalls.fsopen(operation.fstype)
    try:
        for key, value in operation.options:
            if value is None:
                syscalls.fsconfig_flag(fs_fd, key)
            else:
                syscalls.fsconfig_string(fs_fd, key, value)
        syscalls.fsconfig_create(fs_fd)
        mount_fd = syscalls.fsmount(fs_fd, operation.attributes)
    finally:
        os.close(fs_fd)
    try:
        _attach(mount_fd, root_fd, operation.destination)
    finally:
        os.close(mount_fd)


def _clone_device(name: str) -> int:
    """A detached clone of the host's device node, checked to be that device."""
    fd = syscalls.open_tree(syscalls.AT_FDCWD, f"/dev/{name}", _CLONE)
    try:
        found = os.fstat(fd)
        if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(*DEVICES[name]):
            raise OSError(errno.ENODEV, f"host /dev/{name} is not the device it should be")
        syscalls.mount_setattr(fd, "", attr_set=DEVICE_ATTRIBUTES)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _attach_device(name: str, root_fd: int) -> None:
    dev_fd = _open_beneath(root_fd, "/dev")
    try:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(name, flags, 0o644, dir_fd=dev_fd))
        target = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dev_fd)
    finally:
        os.close(dev_fd)
    mount_fd = _clone_device(name)
    try:
        syscalls.move_mount(mount_fd, "", target, "", _MOVE)
    finally:
        os.close(mount_fd)
        os.close(target)


def _mask(path: str, root_fd: int) -> None:
    try:
        target = _open_beneath(root_fd, path)
    except FileNotFoundError:
        return  # runtime-spec: a masked path that does not exist is skipped
    try:
        if stat.S_ISDIR(os.fstat(target).st_mode):
            fs_fd = syscalls.fsopen("tmpfs")
            syscalls.fsconfig_string(fs_fd, "size", "4k")
            syscalls.fsconfig_string(fs_fd, "mode", "0555")
            syscalls.fsconfig_create(fs_fd)
            mount_fd = syscalls.fsmount(fs_fd, _PROC | MountAttr.RDONLY)
            os.close(fs_fd)
        else:
            mount_fd = _clone_device("null")
        syscalls.move_mount(mount_fd, "", target, "", _MOVE)
        os.close(mount_fd)
    finally:
        os.close(target)


def _make_read_only(path: str, root_fd: int) -> None:
    try:
        target = _open_beneath(root_fd, path)
    except FileNotFoundError:
        return
    try:
        mount_fd = syscalls.open_tree(target, "", _CLONE | AT_EMPTY_PATH | syscalls.AT_RECURSIVE)
        attributes = _PROC | MountAttr.RDONLY
        syscalls.mount_setattr(
            mount_fd, "", flags=AT_EMPTY_PATH | syscalls.AT_RECURSIVE, attr_set=attributes
        )
        syscalls.move_mount(mount_fd, "", target, "", _MOVE)
        os.close(mount_fd)
    finally:
        os.close(target)
