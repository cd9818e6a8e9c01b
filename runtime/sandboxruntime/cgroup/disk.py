"""Which whole disk a path is stored on, for I/O limits. Effects: reads /proc and /sys."""

from __future__ import annotations

import os
import stat

from sandboxruntime.errors import HostError

__all__ = ["block_device_of"]

_MAX_LOOP_DEPTH = 4  # a loop device on a loop device ... on a disk


def block_device_of(path: str) -> tuple[int, int]:
    """Return (major, minor) of the whole disk that holds `path`.

    Partitions become their disk (the throttles refuse partitions), loop devices the disk that
    holds their backing file, btrfs' anonymous numbers the device of their mount. A device-mapper
    volume stays itself: the block layer throttles it as a disk. Raises HostError where no block
    device is behind the path (tmpfs, overlay, network), OSError if `path` does not exist.
    """
    for _ in range(_MAX_LOOP_DEPTH):
        device = os.stat(path).st_dev
        if os.major(device) == 0:
            device = _device_of_mount(path)
        number = f"{os.major(device)}:{os.minor(device)}"
        node = os.path.realpath(f"/sys/dev/block/{number}")
        if not os.path.isdir(node):
            raise _no_disk(path, f"device {number} is not in /sys/dev/block")
        if os.path.exists(f"{node}/partition"):
            node = os.path.dirname(node)
        backing = f"{node}/loop/backing_file"
        if not os.path.exists(backing):
            with open(f"{node}/dev", encoding="ascii") as file:
                major, minor = file.read().strip().split(":")
            return int(major), int(minor)
        with open(backing, encoding="utf-8", errors="surrogateescape") as file:
            path = file.read().rstrip("\n")
    raise _no_disk(path, "loop devices are nested too deeply")


def _device_of_mount(path: str) -> int:
    """Return the st_rdev of the block device in the source field of the mount of `path`."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            fields = dict(
                line.split(":\t", 1) for line in file.read().splitlines() if ":\t" in line
            )
    finally:
        os.close(fd)
    mount_id = fields["mnt_id"].strip()
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            if line.split(" ", 1)[0] != mount_id:
                continue
            source = line.partition(" - ")[2].split(" ")[1]
            if source.startswith("/"):
                status = os.stat(source)
                if stat.S_ISBLK(status.st_mode):
                    return status.st_rdev
            raise _no_disk(path, f"it is mounted from {source!r}")
    raise _no_disk(path, "its mount is not in /proc/self/mountinfo")


def _no_disk(path: str, why: str) -> HostError:
    return HostError(
        f"no block device is behind {path}: {why}",
        feature="cgroup:io",
        hint="keep the state directory on a disk, or ask for no I/O limit",
    )
