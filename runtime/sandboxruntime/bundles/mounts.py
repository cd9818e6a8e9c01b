"""Mounts, devices and links of a bundle: options parsed (pure), and what is made below the root.

Every path below the root is resolved inside it (openat2(2), RESOLVE_IN_ROOT) to a descriptor, and
mounted upon by descriptor: a link in an image cannot lead out, nor change in between.
Source: config.md, Mounts; config-linux.md, Default Devices and Devices; mount(8).
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from sandboxruntime import syscalls
from sandboxruntime.bundles.config import Device, Mount
from sandboxruntime.cgroup import Layout
from sandboxruntime.errors import SpecError
from sandboxruntime.syscalls import (
    AT_EMPTY_PATH,
    AT_RECURSIVE,
    MountAttr,
    MountFlag,
    MoveMountFlag,
    OpenTreeFlag,
    Resolve,
)

__all__ = [
    "DEFAULT_DEVICES",
    "LINKS",
    "MOUNT_OPTIONS",
    "Options",
    "make_device",
    "make_links",
    "mask",
    "mount_one",
    "open_bind",
    "open_inside",
    "parse_options",
    "plan_cgroup_mounts",
    "set_read_only",
]

# (attributes to set, attributes to clear). Of the times of access only one mode is on.
_ATIME: Final = MountAttr(0x70)
_ATTRIBUTES: Final[dict[str, tuple[MountAttr, MountAttr]]] = {
    "ro": (MountAttr.RDONLY, MountAttr(0)),
    "rw": (MountAttr(0), MountAttr.RDONLY),
    "nosuid": (MountAttr.NOSUID, MountAttr(0)),
    "suid": (MountAttr(0), MountAttr.NOSUID),
    "nodev": (MountAttr.NODEV, MountAttr(0)),
    "dev": (MountAttr(0), MountAttr.NODEV),
    "noexec": (MountAttr.NOEXEC, MountAttr(0)),
    "exec": (MountAttr(0), MountAttr.NOEXEC),
    "nosymfollow": (MountAttr.NOSYMFOLLOW, MountAttr(0)),
    "symfollow": (MountAttr(0), MountAttr.NOSYMFOLLOW),
    "noatime": (MountAttr(0x10), _ATIME),
    "strictatime": (MountAttr(0x20), _ATIME),
    "relatime": (MountAttr(0), _ATIME),
    "atime": (MountAttr(0), _ATIME),
    "nodiratime": (MountAttr(0x80), MountAttr(0)),
    "diratime": (MountAttr(0), MountAttr(0x80)),
}
_PROPAGATION: Final = {
    "private": MountFlag.PRIVATE,
    "slave": MountFlag.SLAVE,
    "shared": MountFlag.SHARED,
    "unbindable": MountFlag(1 << 17),
}
_SUPER_FLAGS: Final = ("sync", "async", "dirsync", "lazytime", "mand")
_WITHOUT_EFFECT: Final = ("defaults", "norelatime", "nostrictatime", "nolazytime", "nomand")
_REFUSED: Final = ("idmap", "ridmap", "tmpcopyup", "copy-symlink", "remount")
MOUNT_OPTIONS: Final = (
    "bind", "rbind", *_ATTRIBUTES, *_PROPAGATION, *(f"r{name}" for name in _PROPAGATION),
    *_SUPER_FLAGS, *_WITHOUT_EFFECT,
)  # fmt: skip
_CLONE: Final = OpenTreeFlag.CLONE | OpenTreeFlag.CLOEXEC
_MOVE: Final = MoveMountFlag.F_EMPTY_PATH | MoveMountFlag.T_EMPTY_PATH
_INSIDE: Final = Resolve.IN_ROOT | Resolve.NO_MAGICLINKS
_LINKS_MAX: Final = 40  # path_resolution(7)
_KINDS: Final = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}

DEFAULT_DEVICES: Final = tuple(
    Device(f"/dev/{name}", "c", major, minor, 0o666, 0, 0)
    for name, major, minor in (
        ("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9),
        ("tty", 5, 0),
    )
)  # fmt: skip
LINKS: Final = (
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one mount. `data` are the file system's own, as fsconfig(2) takes them."""

    bind: bool = False
    recursive: bool = False
    set: MountAttr = MountAttr(0)
    clear: MountAttr = MountAttr(0)
    set_recursive: MountAttr = MountAttr(0)
    propagation: tuple[tuple[MountFlag, bool], ...] = ()  # with what is mounted below, or not
    data: tuple[tuple[str, str | None], ...] = ()


def parse_options(mount: Mount) -> Options:
    """Sort a mount's options. Raises SpecError for those that would be without effect. Pure."""
    bind, recursive = mount.type == "bind", False
    on, off, on_recursive = MountAttr(0), MountAttr(0), MountAttr(0)
    propagation: list[tuple[MountFlag, bool]] = []
    data: list[tuple[str, str | None]] = []
    for option in mount.options:
        base = option.removeprefix("r")
        if option in ("bind", "rbind"):
            bind, recursive = True, recursive or option == "rbind"
        elif option in _ATTRIBUTES:
            add, remove = _ATTRIBUTES[option]
            on, off = (on & ~remove) | add, (off & ~add) | remove
        elif option in _PROPAGATION or (base != option and base in _PROPAGATION):
            propagation.append((_PROPAGATION[base if base in _PROPAGATION else option],
                                option not in _PROPAGATION))  # fmt: skip
        elif base != option and base in _ATTRIBUTES and not _ATTRIBUTES[base][1]:
            on_recursive |= _ATTRIBUTES[base][0]
        elif option in _REFUSED:
            raise SpecError(
                f"mount {mount.destination}: option {option} is more than this runtime can do",
                field="mounts.options",
            )
        elif option in _SUPER_FLAGS:
            data.append((option, None))
        elif option not in _WITHOUT_EFFECT:
            key, equals, value = option.partition("=")
            data.append((key, value if equals else None))
    return Options(bind, recursive, on, off, on_recursive, tuple(propagation), tuple(data))


def plan_cgroup_mounts(mount: Mount, layout: Layout, path: str) -> list[Mount]:
    """A mount of type cgroup: the container's own directory of every hierarchy, and no other's."""
    binds = ("bind", *(option for option in mount.options if option in _ATTRIBUTES))
    if not layout.v1:
        return [Mount(mount.destination, "bind", layout.directory("", path), binds)]
    top = Mount(mount.destination, "tmpfs", "tmpfs",
                ("nosuid", "nodev", "noexec", "mode=755", "size=64k"))  # fmt: skip
    return [top] + [
        Mount(f"{mount.destination}/{key or 'unified'}", "bind", f"{point}/{path}", binds)
        for key, point in layout.hierarchies().items()
    ]


def open_inside(root_fd: int, path: str, flags: int = os.O_PATH) -> int:
    """Open a path inside the root; links in it lead inside, too."""
    return syscalls.openat2(root_fd, path.lstrip("/") or ".", flags, resolve=_INSIDE)


def _make_directory(root_fd: int, path: str, links: int = 0) -> int:
    """Mkdir -p inside the root, through links that are there. Returns an O_PATH descriptor."""
    try:
        return open_inside(root_fd, path, os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        parent, _, name = path.rstrip("/").rpartition("/")
        parent_fd = _make_directory(root_fd, parent or "/", links)
    try:
        os.mkdir(name, 0o755, dir_fd=parent_fd)
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=parent_fd)
    except FileExistsError:  # a link to what is not there: that is made, inside
        return _make_directory(root_fd, _target(name, parent, parent_fd, links), links + 1)
    finally:
        os.close(parent_fd)


def _target(name: str, parent: str, parent_fd: int, links: int) -> str:
    """Where a link leads, as a path from the root. Raises OSError for what is no link, or loops."""
    if links >= _LINKS_MAX:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
    return posixpath.normpath(posixpath.join("/", parent, os.readlink(name, dir_fd=parent_fd)))


def _make_file(root_fd: int, path: str, links: int = 0) -> int:
    try:
        return open_inside(root_fd, path)
    except FileNotFoundError:
        parent, _, name = path.rpartition("/")
        parent_fd = _make_directory(root_fd, parent or "/")
    try:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(name, flags, 0o755, dir_fd=parent_fd))
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
    except FileExistsError:
        return _make_file(root_fd, _target(name, parent, parent_fd, links), links + 1)
    finally:
        os.close(parent_fd)


def mount_one(mount: Mount, root_fd: int, bind_fd: int | None) -> None:
    """Make one mount inside the root, and the place for it. Takes the detached `bind_fd`."""
    mount_fd = _open_new(mount, parse_options(mount)) if bind_fd is None else bind_fd
    try:
        directory = stat.S_ISDIR(os.fstat(mount_fd).st_mode)
        make = _make_directory if directory else _make_file
        target_fd = make(root_fd, mount.destination)
        try:
            syscalls.move_mount(mount_fd, "", target_fd, "", _MOVE)
        finally:
            os.close(target_fd)
    finally:
        os.close(mount_fd)


def open_bind(mount: Mount) -> int | None:
    """A detached clone of what a bind shows, with its options; None for a mount that is none.

    For the runtime's own process, before the container's exists: its ids may not get there.
    Relative sources are of the working directory.
    """
    options = parse_options(mount)
    if not options.bind:
        return None
    if options.data:
        raise SpecError(f"mount {mount.destination}: a bind has no option {options.data[0][0]}",
                        field="mounts.options")  # fmt: skip
    flags = _CLONE | (AT_RECURSIVE if options.recursive else 0)
    mount_fd = syscalls.open_tree(syscalls.AT_FDCWD, mount.source, flags)
    try:
        # Private: a clone of a shared mount would go on telling its peers, the host, of ours.
        for propagation, recursive in options.propagation or ((MountFlag.PRIVATE, True),):
            every = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
            syscalls.mount_setattr(mount_fd, "", flags=every, propagation=propagation)
        if options.set_recursive:
            syscalls.mount_setattr(
                mount_fd, "", flags=AT_EMPTY_PATH | AT_RECURSIVE, attr_set=options.set_recursive
            )
        if options.set or options.clear:
            syscalls.mount_setattr(mount_fd, "", attr_set=options.set, attr_clear=options.clear)
    except BaseException:
        os.close(mount_fd)
        raise
    return mount_fd


def _open_new(mount: Mount, options: Options) -> int:
    fs_fd = syscalls.fsopen(mount.type)
    try:
        if mount.source:
            syscalls.fsconfig_string(fs_fd, "source", mount.source)
        for key, value in options.data:
            if value is None:
                syscalls.fsconfig_flag(fs_fd, key)
            else:
                syscalls.fsconfig_string(fs_fd, key, value)
        syscalls.fsconfig_create(fs_fd)
        return syscalls.fsmount(fs_fd, options.set | options.set_recursive)
    finally:
        os.close(fs_fd)


def make_device(device: Device, root_fd: int, *, bind: bool) -> None:
    """Make a device node, or bind the host's where nodes cannot be made (a user namespace)."""
    parent, _, name = device.path.rpartition("/")
    parent_fd = _make_directory(root_fd, parent or "/")
    try:
        if bind:
            _bind_device(device, root_fd)
            return
        number = os.makedev(device.major, device.minor)
        try:
            os.mknod(name, _KINDS[device.type] | device.mode, number, dir_fd=parent_fd)
        except FileExistsError:
            _check_device(os.stat(name, dir_fd=parent_fd, follow_symlinks=False), device)
        os.chmod(name, device.mode, dir_fd=parent_fd)
        os.chown(name, device.uid, device.gid, dir_fd=parent_fd, follow_symlinks=False)
    finally:
        os.close(parent_fd)


def _check_device(found: os.stat_result, device: Device) -> None:
    number = (os.major(found.st_rdev), os.minor(found.st_rdev))
    if stat.S_IFMT(found.st_mode) != _KINDS[device.type] or (
        device.type != "p" and number != (device.major, device.minor)
    ):
        raise OSError(errno.EEXIST, f"{device.path} is there, and is not that device")


def _bind_device(device: Device, root_fd: int) -> None:
    mount_fd = syscalls.open_tree(syscalls.AT_FDCWD, device.path, _CLONE)
    try:
        _check_device(os.fstat(mount_fd), device)
        target_fd = _make_file(root_fd, device.path)
        try:
            syscalls.move_mount(mount_fd, "", target_fd, "", _MOVE)
        finally:
            os.close(target_fd)
    finally:
        os.close(mount_fd)


def make_links(root_fd: int, links: Iterable[tuple[str, str]] = LINKS) -> None:
    """The links of /dev that every container has. What is there already stays."""
    for path, target in links:
        parent, _, name = path.rpartition("/")
        parent_fd = _make_directory(root_fd, parent)
        try:
            os.symlink(target, name, dir_fd=parent_fd)
        except FileExistsError:
            pass
        finally:
            os.close(parent_fd)


def mask(path: str, root_fd: int) -> None:
    """Cover a path by an empty, read-only directory or by /dev/null; a missing one is skipped."""
    for target_fd in _existing(path, root_fd):
        if stat.S_ISDIR(os.fstat(target_fd).st_mode):
            cover = Mount(path, "tmpfs", "tmpfs", ("ro", "nosuid", "nodev", "noexec", "size=4k"))
            mount_fd = _open_new(cover, parse_options(cover))
        else:
            mount_fd = syscalls.open_tree(syscalls.AT_FDCWD, "/dev/null", _CLONE)
            _check_device(os.fstat(mount_fd), DEFAULT_DEVICES[0])
        try:
            syscalls.move_mount(mount_fd, "", target_fd, "", _MOVE)
        finally:
            os.close(mount_fd)


def set_read_only(path: str, root_fd: int) -> None:
    """Make a path and what is mounted below it read-only; a missing one is skipped."""
    for target_fd in _existing(path, root_fd):
        flags = _CLONE | AT_EMPTY_PATH | AT_RECURSIVE
        mount_fd = syscalls.open_tree(target_fd, "", flags)
        try:
            syscalls.mount_setattr(
                mount_fd, "", flags=AT_EMPTY_PATH | AT_RECURSIVE, attr_set=MountAttr.RDONLY
            )
            syscalls.move_mount(mount_fd, "", target_fd, "", _MOVE)
        finally:
            os.close(mount_fd)


def _existing(path: str, root_fd: int) -> Iterator[int]:
    try:
        target_fd = open_inside(root_fd, path)
    except FileNotFoundError:
        return
    try:
        yield target_fd
    finally:
        os.close(target_fd)
