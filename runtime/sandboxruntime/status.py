"""What a process that is being set up says of itself: its timings, or the step that failed."""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar

from sandboxruntime.errors import SetupError
from sandboxruntime.steps import Step

__all__ = ["Readable", "Waiting", "await_status", "finish", "hear_status", "setup_error"]

TOTAL_MAX = 65536  # bytes
# What reading words that make no sense raises: infinities overflow, deep nesting recurses.
_SENSELESS = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class Readable:
    """What somebody waits for: a descriptor, until a time (time.monotonic())."""

    fd: int
    deadline: float


Outcome = TypeVar("Outcome")
# Work that others need not wait for: it is sent whether what it waits for has come, at first None.
Waiting = Generator[Readable, bool | None, Outcome]


def finish(work: Waiting[Outcome]) -> Outcome:
    """Do it here and now, for whoever has nothing else to do meanwhile."""
    try:
        wait = next(work)
        while True:
            poll = select.poll()  # select(2) knows no descriptor above 1023
            poll.register(wait.fd, select.POLLIN)
            remaining = max(0.0, wait.deadline - time.monotonic())
            wait = work.send(bool(poll.poll(remaining * 1000)))
    except StopIteration as done:
        outcome: Outcome = done.value
        return outcome


def setup_error(step: str, code: int, message: str) -> SetupError:
    """The error of a step. `step` is one of Step's values."""
    return SetupError(f"setup failed at {step}: {message}", step=Step(step), errno=code)


def await_status(status_fd: int, limit_s: float) -> dict[str, float]:
    """hear_status(), here and now."""
    return finish(hear_status(status_fd, limit_s))


def hear_status(status_fd: int, limit_s: float) -> Waiting[dict[str, float]]:
    """Wait for the word of all who hold the pipe: timings, or a failure raised as SetupError.

    They may be children of a zygote, so nothing that comes here is trusted to make sense.
    """
    deadline = time.monotonic() + limit_s
    data = b""
    while len(data) < TOTAL_MAX:
        if not (yield Readable(status_fd, deadline)):
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
