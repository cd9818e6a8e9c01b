"""What all sandboxes of a daemon share."""

from __future__ import annotations

import os
from dataclasses import dataclass

import sandboxruntime
from sandboxkernel.daemon.launcher_client import LauncherClient
from sandboxruntime.cgroup import Layout

__all__ = ["Runtime"]


@dataclass(frozen=True, slots=True)
class Runtime:
    """The launcher and facts of the host.

    `guest_source` is the program that runs inside, `package` the directory of sandboxruntime.
    `host_filters` is how many seccomp filters
    the daemon itself is under, which everything it starts inherits.
    """

    launcher: LauncherClient
    layout: Layout
    host_namespaces: dict[str, int]
    guest_source: str
    host_filters: int
    package: str = os.path.dirname(os.path.abspath(sandboxruntime.__file__))
