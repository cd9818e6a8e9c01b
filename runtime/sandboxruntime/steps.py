"""The order of container set-up, as one enum. Pure.

The same names appear in errors ("setup failed at mounts: ..."), in timing spans, in the
fault-injection test and in docs/architecture.md.
"""

from __future__ import annotations

import enum

__all__ = ["BUNDLE_STEPS", "CHILD_STEPS", "LAUNCHER_STEPS", "Step"]


class Step(enum.StrEnum):
    """Container set-up, in the order it happens. The order is a security property."""

    # In the launcher, with host privilege, before the container exists.
    VALIDATE = "validate"  # refuse bad specs; no effects yet
    CGROUP = "cgroup"  # make the cgroup, write every limit, read it back
    ROOTFS = "rootfs"  # detached overlay of idmapped layers and the user's upper directory
    BINDS = "binds"  # work folder: opened with the caller's credentials, detached, idmapped
    CLONE = "clone"  # one clone3 for user, mount, PID, IPC, UTS and network namespaces
    IDMAP = "idmap"  # the child's uid_map and gid_map, written from outside

    # In the child, as pid 1 of its PID namespace.
    ENTER_CGROUP = "enter_cgroup"  # through descriptors that root opened
    CGROUP_NAMESPACE = "cgroup_namespace"  # only now: its root is the cgroup just entered
    SESSION = "session"  # setsid, own keyring, default signals
    MOUNTS = "mounts"  # private propagation, root, binds, proc, dev, shm, tmp, run
    MASKS = "masks"  # masked and read-only paths
    PIVOT = "pivot"  # pivot_root(".", "."), old root detached
    HOSTNAME = "hostname"
    LOOPBACK = "loopback"  # lo up: the debugger listens on 127.0.0.1
    RLIMITS = "rlimits"
    CLOSE_FDS = "close_fds"  # failure here is fatal, never a warning
    CREDENTIALS = "credentials"  # groups, gid, uid: in that order
    CAPABILITIES = "capabilities"  # every set empty, securebits locked
    NO_NEW_PRIVS = "no_new_privs"
    LANDLOCK = "landlock"  # after the last mount
    SECCOMP = "seccomp"  # last: the filter forbids the calls above

    # Root side again, then the kernel's own process.
    VERIFY = "verify"  # everything above, checked from outside through /proc
    HAND_OVER = "hand_over"  # environment, key and sockets; then exec

    # Of bundles only (sandboxruntime.bundles), which have their own order.
    HOOKS = "hooks"
    CONSOLE = "console"


LAUNCHER_STEPS = tuple(Step)[: tuple(Step).index(Step.ENTER_CGROUP)]
CHILD_STEPS = tuple(Step)[tuple(Step).index(Step.ENTER_CGROUP) : tuple(Step).index(Step.VERIFY)]
BUNDLE_STEPS = (Step.HOOKS, Step.CONSOLE)
