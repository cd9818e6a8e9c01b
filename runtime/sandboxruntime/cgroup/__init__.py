"""Control groups: version 1, version 2 and the mixture, behind one type.

layout (what is mounted) and limits (what is asked) -> plan (writes; pure) -> group (effects).
"""

from __future__ import annotations

from sandboxruntime.cgroup.disk import block_device_of
from sandboxruntime.cgroup.group import Cgroup, create_parent
from sandboxruntime.cgroup.layout import Layout, Mode, parse_layout, read_layout, remove_from_others
from sandboxruntime.cgroup.limits import Check, IoLimit, Limits, Usage, Write
from sandboxruntime.cgroup.plan import plan_devices, plan_parent_writes, plan_writes

__all__ = [
    "Cgroup",
    "Check",
    "IoLimit",
    "Layout",
    "Limits",
    "Mode",
    "Usage",
    "Write",
    "block_device_of",
    "create_parent",
    "parse_layout",
    "plan_devices",
    "plan_parent_writes",
    "plan_writes",
    "read_layout",
    "remove_from_others",
]
