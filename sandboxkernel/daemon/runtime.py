"""What all sandboxes of a daemon share."""

from __future__ import annotations

from dataclasses import dataclass

from sandboxkernel.daemon.launcher_client import LauncherClient
from sandboxruntime.cgroup import Layout

__all__ = ["Runtime"]


@dataclass(frozen=True, slots=True)
class Runtime:
    """The launcher and facts of the host.

    `guest_source` is the program that runs inside. `host_filters` is how many seccomp filters
    the daemon itself is under, which everything it starts inherits.
    """

    launcher: LauncherClient
    layout: Layout
    host_namespaces: dict[str, int]
    guest_source: str
    host_filters: int
