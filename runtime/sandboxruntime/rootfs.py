"""Root filesystems and binds, made by the launcher as detached or privately attached mounts.

The launcher lives in a mount namespace of its own, so nothing made here is ever visible on the
host, and all of it is gone when the launcher and the containers are gone: mounts cannot leak.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sandboxruntime import syscalls
from sandboxruntime.acting import acting_as
from sandboxruntime.errors import HostError, SetupError, SpecError
from sandboxruntime.namespaces import clone_root, make_user_namespace
from sandboxruntime.spec import Bind, IdMapping, Rootfs, Spec
from sandboxruntime.steps import Step
from sandboxruntime.syscalls import (
    AT_EMPTY_PATH,
    MountAttr,
    MountFlag,
    MoveMountFlag,
    OpenTreeFlag,
    UmountFlag,
)

__all__ = [
    "OVERLAY_OPTIONS",
    "Bundle",
    "MountFactory",
    "is_allowed",
    "overlay_options",
]

# An imported upper directory may carry redirect or metacopy marks; none is ever followed,
# whatever the Linux configuration's defaults are (filesystems/overlayfs.rst).
OVERLAY_OPTIONS = {"redirect_dir": "nofollow", "metacopy": "off", "index": "off", "xino": "off"}
_CLONE = OpenTreeFlag.CLONE | OpenTreeFlag.CLOEXEC
# Overlays of users without a running kernel stay mounted for their next start, up to this many.
# No profile can offer these: the host's secrets, devices and other users' sockets live there.
NEVER_EXACTLY = ("/", "/home", "/var", "/tmp", "/var/tmp", "/opt", "/usr")
NEVER_BELOW = ("/proc", "/sys", "/dev", "/run", "/etc", "/boot", "/var/lib", "/var/run", "/var/log")
UNUSED_OVERLAYS_MAX = 32
NAMESPACES_MAX = 512


def overlay_options(
    rootfs: Rootfs, lower: list[str], writable: str
) -> list[tuple[str, str | None]]:
    """fsconfig(2) keys and values of an overlay; None marks a flag. Pure.

    `lower` are the mounted layers, lowest first; overlayfs wants the topmost first. `writable` is
    where what holds the upper and the work directory is mounted.
    """
    shared = _shared_folder(rootfs)
    options: list[tuple[str, str | None]] = [
        ("lowerdir", ":".join(reversed(lower))),
        ("upperdir", f"{writable}/{os.path.relpath(rootfs.upper, shared)}"),
        ("workdir", f"{writable}/{os.path.relpath(rootfs.work, shared)}"),
        *OVERLAY_OPTIONS.items(),
    ]
    if rootfs.volatile:
        options.append(("volatile", None))
    return options


def _shared_folder(rootfs: Rootfs) -> str:
    """The innermost folder with both: overlayfs wants them on one mount."""
    return os.path.commonpath([rootfs.upper, rootfs.work])


@dataclass(slots=True)
class _Overlay:
    rootfs: Rootfs
    mount_point: str
    users: int = 0


@dataclass(frozen=True, slots=True)
class Bundle:
    """Where a container's mounts are for another runtime: its root, and its binds in order."""

    directory: str
    rootfs: str
    binds: tuple[str, ...]


class MountFactory:
    """Owner of every mount that the launcher makes before a container exists.

    `staging` is a directory of the launcher's own; a tmpfs in its mount namespace covers it.
    """

    def __init__(self, staging: str) -> None:
        self._staging = staging
        self._serial = 0
        self._overlays: OrderedDict[tuple[Rootfs, tuple[IdMapping, ...]], _Overlay] = OrderedDict()
        self._namespaces: OrderedDict[tuple[IdMapping, ...], int] = OrderedDict()
        os.makedirs(staging, mode=0o700, exist_ok=True)
        syscalls.mount("tmpfs", staging, "tmpfs", MountFlag.NOSUID | MountFlag.NODEV, "mode=0711")
        # Where every child attaches its root, in its own copy of this mount namespace.
        self.attach_point = self._new_directory()
        self._empty = self._new_directory()  # without an upper, overlayfs wants two layers

    def open_rootfs(self, spec: Spec) -> int:
        """Return a detached mount of the container's root; count one user of its overlay."""
        key = (spec.rootfs, spec.uid_mappings)
        overlay = self._overlays.get(key)
        if overlay is None:
            self._refuse_shared_upper(spec.rootfs)
            overlay = self._overlays[key] = _Overlay(spec.rootfs, self._mount_overlay(spec))
        self._overlays.move_to_end(key)
        fd = syscalls.open_tree(syscalls.AT_FDCWD, overlay.mount_point, _CLONE)
        overlay.users += 1
        return fd

    def adopt_rootfs(self, spec: Spec, container_pidfd: int) -> None:
        """Count one user of an overlay that another launcher has mounted.

        Where this one has no mount of it yet, it clones the container's own: a second overlay on
        the same upper directory would be undefined behaviour (overlayfs.rst).
        """
        key = (spec.rootfs, spec.uid_mappings)
        overlay = self._overlays.get(key)
        if overlay is None:
            fd = clone_root(container_pidfd)
            try:
                overlay = self._overlays[key] = _Overlay(spec.rootfs, self._attach(fd))
            finally:
                os.close(fd)
        overlay.users += 1

    def release_rootfs(self, spec: Spec) -> None:
        """Give back one use. The overlay stays mounted for the next start, for a while."""
        key = (spec.rootfs, spec.uid_mappings)
        overlay = self._overlays.get(key)
        if overlay is None:
            return
        overlay.users -= 1
        unused = [k for k, o in self._overlays.items() if o.users == 0]
        for stale in unused[: max(0, len(unused) - UNUSED_OVERLAYS_MAX)]:
            self._unmount(stale)

    def forget(self, upper: str) -> bool:
        """Unmount the unused overlays on `upper`; False if a container still uses one."""
        for key in [k for k, o in self._overlays.items() if o.rootfs.upper == upper]:
            if self._overlays[key].users:
                return False
            self._unmount(key)
        return True

    def open_bind(self, bind: Bind, spec: Spec) -> int:
        """Return a detached, idmapped mount of a directory, opened with its opener's rights."""
        source_fd = self._open_source(bind)
        try:
            fd = syscalls.open_tree(source_fd, "", _CLONE | AT_EMPTY_PATH)
        finally:
            os.close(source_fd)
        attributes = MountAttr.NOSUID | MountAttr.NODEV
        if bind.read_only:
            attributes |= MountAttr.RDONLY
        try:
            userns_fd = None if spec.zygote else self._bind_namespace(bind, spec)
        except BaseException:
            os.close(fd)
            raise
        try:
            _set_attributes(fd, attributes, userns_fd)
        except OSError as exc:
            os.close(fd)
            if exc.errno != errno.EINVAL:
                raise
            raise HostError(
                f"the file system of {bind.source} does not support idmapped mounts",
                feature="idmapped_mounts",
                hint="Keep notebooks on ext4, xfs, btrfs or tmpfs, or use a newer Linux.",
            ) from exc
        return self._with_own_inodes(fd) if bind.own_inodes else fd

    def _with_own_inodes(self, bind_fd: int) -> int:
        """Trade a detached mount for one of an overlay on it, read-only. Takes the descriptor."""
        with contextlib.ExitStack() as undo:
            with contextlib.ExitStack() as temporary:
                temporary.callback(os.close, bind_fd)
                lower = self._attach(bind_fd)
                temporary.callback(_detach, lower)
                layers = f"{os.path.basename(lower)}:{os.path.basename(self._empty)}"
                overlay = self._new_overlay(
                    [("lowerdir", layers), *OVERLAY_OPTIONS.items()], MountAttr.RDONLY
                )
                undo.callback(os.close, overlay)
            undo.pop_all()
            return overlay

    def _bind_namespace(self, bind: Bind, spec: Spec) -> int:
        return self._namespace_for(
            _disk_to_inside(bind.opener.uid, spec.process.uid, spec.uid_mappings),
            _disk_to_inside(bind.opener.gid, spec.process.gid, spec.gid_mappings),
        )

    @contextlib.contextmanager
    def bundle(self, root_fd: int, bind_fds: list[int]) -> Iterator[Bundle]:
        """A directory in which another runtime finds the mounts, for as long as it needs them.

        The ids of the container must be able to walk there; only this mount namespace has it.
        """
        with contextlib.ExitStack() as stack:
            directory = self._new_directory(0o711)
            stack.callback(_remove_flat, directory)
            places = []
            for index, fd in enumerate((root_fd, *bind_fds)):
                places.append(f"{directory}/{index}")
                os.mkdir(places[-1])
                syscalls.move_mount(
                    fd, "", syscalls.AT_FDCWD, places[-1], MoveMountFlag.F_EMPTY_PATH
                )
                stack.callback(syscalls.umount2, places[-1], UmountFlag.DETACH)
            yield Bundle(directory, places[0], tuple(places[1:]))

    def _refuse_shared_upper(self, rootfs: Rootfs) -> None:
        # Two live overlays on one upper directory are undefined behaviour (overlayfs.rst).
        for overlay in self._overlays.values():
            if overlay.rootfs.upper == rootfs.upper and overlay.users:
                raise SetupError(
                    f"the layer {rootfs.upper} is in use with other image layers",
                    step=Step.ROOTFS,
                    errno=errno.EBUSY,
                )
        self.forget(rootfs.upper)

    def _mount_overlay(self, spec: Spec) -> str:
        userns_fd = None
        if not spec.zygote:
            userns_fd = self._namespace_for(spec.uid_mappings, spec.gid_mappings)
        if spec.rootfs.volatile:
            # The mark is for a crash of the host, after which such a layer must not be used
            # (overlayfs.rst, "Volatile mount"); this host is up, and its page cache is right.
            mark = os.path.join(spec.rootfs.work, "work", "incompat")
            shutil.rmtree(mark, ignore_errors=True)
        with contextlib.ExitStack() as undo:
            with contextlib.ExitStack() as temporary:
                places = []
                for layer in spec.rootfs.lower:
                    places.append(self._mount_layer(layer, MountAttr.RDONLY, userns_fd))
                    # overlayfs keeps private clones of its layers; ours are not needed again.
                    temporary.callback(_detach, places[-1])
                # Not idmapped: what is written has the host's ids on disk.
                places.append(self._mount_layer(_shared_folder(spec.rootfs), MountAttr(0), None))
                temporary.callback(_detach, places[-1])
                *lower, writable = (os.path.basename(place) for place in places)
                mount_fd = self._new_overlay(overlay_options(spec.rootfs, lower, writable))
                temporary.callback(os.close, mount_fd)
                mount_point = self._attach(mount_fd)
                undo.callback(_detach, mount_point)
            undo.pop_all()
            return mount_point

    def _new_overlay(
        self, options: Iterable[tuple[str, str | None]], attributes: MountAttr = MountAttr(0)
    ) -> int:
        """A detached overlay, nosuid and nodev, of layers that are named relative to the staging.

        Every container reads these names in /proc/self/mountinfo: they tell nothing of the host.
        """
        fs_fd = syscalls.fsopen("overlay")
        try:
            before = os.getcwd()
            os.chdir(self._staging)
            try:
                for key, value in options:
                    if value is None:
                        syscalls.fsconfig_flag(fs_fd, key)
                    else:
                        syscalls.fsconfig_string(fs_fd, key, value)
                syscalls.fsconfig_create(fs_fd)
            finally:
                os.chdir(before)
            return syscalls.fsmount(fs_fd, MountAttr.NOSUID | MountAttr.NODEV | attributes)
        finally:
            os.close(fs_fd)

    def _attach(self, mount_fd: int) -> str:
        mount_point = self._new_directory()
        try:
            syscalls.move_mount(
                mount_fd, "", syscalls.AT_FDCWD, mount_point, MoveMountFlag.F_EMPTY_PATH
            )
        except OSError:
            os.rmdir(mount_point)
            raise
        return mount_point

    def _mount_layer(self, layer: str, attributes: MountAttr, userns_fd: int | None) -> str:
        fd = syscalls.open_tree(syscalls.AT_FDCWD, layer, _CLONE)
        try:
            _set_attributes(fd, attributes | MountAttr.NOSUID | MountAttr.NODEV, userns_fd)
            return self._attach(fd)
        except OSError as exc:
            if exc.errno == errno.EINVAL and userns_fd is not None:
                raise HostError(
                    f"the file system of {layer} does not support idmapped mounts",
                    feature="idmapped_mounts",
                    hint="Keep the data directory on ext4, xfs or btrfs.",
                ) from exc
            raise
        finally:
            os.close(fd)

    def _namespace_for(
        self, uid_mappings: tuple[IdMapping, ...], gid_mappings: tuple[IdMapping, ...]
    ) -> int:
        key = (*uid_mappings, *gid_mappings)
        fd = self._namespaces.get(key)
        if fd is None:
            fd = self._namespaces[key] = make_user_namespace(uid_mappings, gid_mappings)
            if len(self._namespaces) > NAMESPACES_MAX:
                os.close(self._namespaces.popitem(last=False)[1])
        self._namespaces.move_to_end(key)
        return fd

    def _open_source(self, bind: Bind) -> int:
        try:
            with acting_as(bind.opener):
                fd = os.open(bind.source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                if not os.access(f"/proc/self/fd/{fd}", os.R_OK | os.X_OK, effective_ids=True):
                    os.close(fd)
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), bind.source)
        except OSError as exc:
            raise SpecError(
                f"cannot open {bind.source} as uid {bind.opener.uid}: {exc.strerror}",
                field="binds.source",
            ) from exc
        # The path may have led through a symbolic link: what was reached is what gets mounted,
        # so it is what the policy is held against.
        reached = os.readlink(f"/proc/self/fd/{fd}")
        if not is_allowed(reached, bind.allowed):
            os.close(fd)
            raise SpecError(
                f"{bind.source} is {reached}, which is not among the folders that may be mounted",
                field="binds.source",
            )
        return fd

    def _unmount(self, key: tuple[Rootfs, tuple[IdMapping, ...]]) -> None:
        mount_point = self._overlays[key].mount_point
        syscalls.umount2(mount_point, UmountFlag.DETACH)
        del self._overlays[key]
        os.rmdir(mount_point)

    def _new_directory(self, mode: int = 0o700) -> str:
        self._serial += 1
        path = f"{self._staging}/{self._serial}"
        os.mkdir(path)
        try:
            os.chmod(path, mode)
        except OSError:
            os.rmdir(path)
            raise
        return path


def _detach(mount_point: str) -> None:
    syscalls.umount2(mount_point, UmountFlag.DETACH)
    os.rmdir(mount_point)


def _remove_flat(directory: str) -> None:
    """Remove a bundle. Never a whole tree: what could not be unmounted there is a user's."""
    for entry in list(os.scandir(directory)):
        remove = os.rmdir if entry.is_dir(follow_symlinks=False) else os.unlink
        remove(entry.path)
    os.rmdir(directory)


def is_allowed(path: str, roots: tuple[str, ...]) -> bool:
    """Whether a resolved path may be mounted: below an allowed root and not the system's. Pure."""
    if path in NEVER_EXACTLY or any(_is_below(path, prefix) for prefix in NEVER_BELOW):
        return False
    return any(_is_below(path, root) for root in roots)


def _is_below(path: str, prefix: str) -> bool:
    return prefix == "/" or path == prefix or path.startswith(prefix + "/")


def _set_attributes(fd: int, attributes: MountAttr, userns_fd: int | None) -> None:
    """mount_setattr(2), with an id map unless `userns_fd` is None.

    Private: a clone of a mount that receives the host's (the launcher's do, wherever systemd made
    the host's shared) would go on receiving them inside the container.
    """
    if userns_fd is not None:
        attributes |= MountAttr.IDMAP
    syscalls.mount_setattr(
        fd, "", attr_set=attributes, propagation=MountFlag.PRIVATE, userns_fd=userns_fd or 0
    )


def _disk_to_inside(
    disk_id: int, inside_id: int, mappings: tuple[IdMapping, ...]
) -> tuple[IdMapping, ...]:
    """The map of an idmapped bind: `disk_id` on disk shows as `inside_id` inside. Pure.

    In a mount's map the first column is the id on disk and the second the id in the initial
    user namespace, which the container's own map then translates (mount_setattr(2)).
    """
    for mapping in mappings:
        offset = inside_id - mapping.container_id
        if 0 <= offset < mapping.size:
            return (IdMapping(disk_id, mapping.host_id + offset, 1),)
    raise SpecError(f"inside id {inside_id} is not mapped", field="uid_mappings")
