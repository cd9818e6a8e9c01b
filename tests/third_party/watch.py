"""What of the host must be the same after a tool has run, and while it does."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support import host_state, leaks, wait_until

__all__ = ["SAME", "Watch", "differences"]

SAME = (
    "sysctls, taint, kernel log, modules, clock, network interfaces, devices, swap, partitions, "
    "processes, mounts, cgroups, namespaces, loop devices"
)
# Counters, and what is random by design.
VOLATILE = re.compile(
    r"/proc/sys/(fs/(dentry-state|inode-nr|inode-state|file-nr|aio-nr|quota/.*)"
    r"|kernel/(random/.*|ns_last_pid|pty/nr|perf_event_max_sample_rate|hung_task_detect_count)"
    r"|net/netfilter/nf_conntrack_count)"
)
TROUBLE = re.compile(
    r"BUG:|WARNING:|Oops|general protection|soft lockup|hard LOCKUP|rcu.*stall"
    r"|blocked for more than|Kernel panic|refcount_t|UBSAN|KASAN|Bad page|list_(add|del) corruption"
)
CLOCK_TOLERANCE_S = 1.0


class Watch:
    """Takes note of the host when it is made; `changes` is what has changed since.

    Made when the sandboxes that are to stay have started.
    """

    def __init__(self) -> None:
        self._left = host_state()
        self._facts = _facts()
        self._log = set(_log())

    def changes(self) -> list[str]:
        """In words. Endings get ten seconds, as in every test."""
        left: dict[str, list[Any]] = {}

        def clean() -> bool:
            left.clear()
            left.update(leaks(self._left))
            return not left

        try:
            wait_until(clean, timeout_s=10)
        except AssertionError:
            pass
        found = [f"left behind: {kind}: {items[:3]}" for kind, items in left.items()]
        now = _facts()
        for name, before in self._facts.items():
            found += [f"{name} changed: {text}" for text in differences(before, now[name])]
        new = [line for line in _log() if line not in self._log]
        self._log.update(new)
        found += [f"kernel log: {line}" for line in new if TROUBLE.search(line)]
        self._facts = now
        return found


def differences(before: Any, after: Any) -> list[str]:
    """Between two readings of one fact, in words. Pure."""
    if isinstance(before, float):
        moved = abs(after - before)
        return [f"by {moved:.1f} s"] if moved > CLOCK_TOLERANCE_S else []
    if isinstance(before, Mapping):
        names = sorted(set(before) | set(after))
        return [name for name in names if before.get(name) != after.get(name)]
    return [] if before == after else [f"{before} is {after}"]


def _facts() -> dict[str, Any]:
    return {
        "sysctls": _sysctls(),
        "taint": _read("/proc/sys/kernel/tainted"),
        "modules": {line.split()[0]: "" for line in _read("/proc/modules").splitlines()},
        "clock": time.time() - time.monotonic(),
        "interfaces": dict.fromkeys(sorted(name for _, name in socket.if_nameindex()), ""),
        "devices": dict.fromkeys(sorted(os.listdir("/dev")), ""),
        "swap": _read("/proc/swaps"),
        "partitions": _read("/proc/partitions"),
    }


def _sysctls() -> dict[str, str]:
    found = {}
    for folder, _, names in os.walk("/proc/sys"):
        for name in names:
            path = f"{folder}/{name}"
            if not VOLATILE.fullmatch(path):
                found[path] = hashlib.sha256(_read(path).encode()).hexdigest()
    return found


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _log() -> list[str]:
    """The kernel's, as far as it can be read."""
    shown = subprocess.run(["dmesg"], capture_output=True, text=True, errors="replace", check=False)
    return shown.stdout.splitlines()
