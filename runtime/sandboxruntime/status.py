"""What a process that is being set up says of itself: its timings, or the step that failed."""

from __future__ import annotations

import json
import os
import select
import time

from sandboxruntime.errors import SetupError
from sandboxruntime.steps import Step

__all__ = ["await_status", "setup_error"]

TOTAL_MAX = 65536  # bytes
# What reading words that make no sense raises: infinities overflow, deep nesting recurses.
_SENSELESS = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


def setup_error(step: str, code: int, message: str) -> SetupError:
    """The error of a step. `step` is one of Step's values."""
    return SetupError(f"setup failed at {step}: {message}", step=Step(step), errno=code)


def await_status(status_fd: int, limit_s: float) -> dict[str, float]:
    """Wait for the word of all who hold the pipe: timings, or a failure raised as SetupError.

    They may be children of a zygote, so nothing that comes here is trusted to make sense.
    """
    deadline = time.monotonic() + limit_s
    data = b""
    poll = select.poll()  # select(2) knows no descriptor above 1023
    poll.register(status_fd, select.POLLIN)
    while len(data) < TOTAL_MAX:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise setup_error(Step.CLONE, 110, f"no answer within {limit_s:g} s")
        chunk = os.read(status_fd, 65536)
        if not chunk:
            break
        data += chunk
    try:
        records = [json.loads(line) for line in data.splitlines()]
        failures = [record for record in records if "step" in record]
        timings = [record["timings"] for record in records if "timings" in record]
        if not failures and timings:
            return {str(step): float(ms) for step, ms in timings[0].items()}
        if failures:
            first = failures[0]
            raise setup_error(Step(first["step"]), int(first["errno"]), first["message"])
    except _SENSELESS as exc:
        raise setup_error(Step.CLONE, 0, f"the process said {data[:200]!r}") from exc
    raise setup_error(Step.CLONE, 0, "the process ended without a word (out of memory?)")
