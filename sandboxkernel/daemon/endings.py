"""How a sandbox's program ended, in words. Pure."""

from __future__ import annotations

import os
import signal
from typing import Any

from sandboxkernel import units
from sandboxkernel.models import ExitInfo

__all__ = ["describe_exit"]


def describe_exit(
    wait_status: int | None,
    *,
    oom_kills: int,
    memory_peak_bytes: int,
    memory_limit_bytes: int | None,
    profile: str,
    generation: int,
    asked: bool,
) -> ExitInfo:
    """The exit of a start. `wait_status` as in wait(2); None when pid 1 was killed as well."""
    common: dict[str, Any] = {
        "asked": asked,
        "generation": generation,
        "memory_peak_bytes": memory_peak_bytes,
    }
    if oom_kills:
        message = (
            f"memory limit {units.format_size(memory_limit_bytes or 0)} reached "
            f"(peak {units.format_size(memory_peak_bytes)}); the limit comes from profile {profile}"
        )
        return ExitInfo(reason="oom_killed", signal=9, message=message, **common)
    if wait_status is None:
        return ExitInfo(reason="signaled", signal=9, message="killed (SIGKILL)", **common)
    if os.WIFSIGNALED(wait_status):
        signum = os.WTERMSIG(wait_status)
        message = f"killed ({_name(signum)})"
        return ExitInfo(reason="signaled", signal=signum, message=message, **common)
    code = os.WEXITSTATUS(wait_status)
    return ExitInfo(reason="exited", code=code, message=f"exited with code {code}", **common)


def _name(signum: int) -> str:
    """As people know it: of the real-time ones, the first and the last alone have names."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"SIGRTMIN+{signum - signal.SIGRTMIN}" if signum > signal.SIGRTMIN else str(signum)
