"""The cgroup above all of one user's sandboxes, and the disk that limits of I/O are of. Effects."""

from __future__ import annotations

from pathlib import Path

from sandboxkernel.daemon.plan import plan_cgroup_limits
from sandboxkernel.daemon.problems import convert
from sandboxkernel.limits import Grant, Subject
from sandboxkernel.models import Limits
from sandboxruntime.cgroup import Layout, block_device_of, create_parent
from sandboxruntime.errors import HostError

__all__ = ["Ceilings"]


class Ceilings:
    """What users may take in all, as their grants say."""

    def __init__(self, layout: Layout, cgroup_parent: str, data_dir: Path) -> None:
        self._layout = layout
        self._parent = cgroup_parent
        self._data_dir = data_dir
        self._applied: dict[int, Limits] = {}

    def disk_for(self, limits: Limits) -> tuple[int, int] | None:
        """The disk that I/O limits apply to. Raises HostUnsupported where there is none."""
        if limits.io is None:
            return None
        try:
            return block_device_of(str(self._data_dir))
        except HostError as exc:
            raise convert(exc) from exc

    def apply(self, caller: Subject, grant: Grant) -> None:
        """Make the cgroup above a user's sandboxes as their grant has it."""
        if grant.ceiling == Limits() or self._applied.get(caller.uid) == grant.ceiling:
            return
        create_parent(
            self._layout,
            f"{self._parent}/{caller.uid}",
            plan_cgroup_limits(grant.ceiling, self.disk_for(grant.ceiling)),
        )
        self._applied[caller.uid] = grant.ceiling
