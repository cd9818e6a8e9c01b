"""What a run has found, and how the outcome of one fault is held against what is promised."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.faults.injector import Operation

__all__ = ["ERRNOS", "Failing", "Fault", "Found", "fail_each"]

ERRNOS = ("EPERM", "ENOSYS", "EINVAL", "ENOMEM", "EIO")


@dataclass(frozen=True, slots=True)
class Fault:
    """One operation of a scenario, and what it fails with."""

    scenario: str
    operation: Operation
    code: int

    def __str__(self) -> str:
        return f"{self.scenario}: {errno.errorcode.get(self.code, '')} {self.operation}"


@dataclass
class Found:
    """What a run of one scenario has seen. The last three are empty where all is as promised.

    `points` are the operations, `faults` the failures of them; `missed` are those that were not
    reached again: how often a loop polls differs from one time to the next.
    """

    points: int = 0
    faults: int = 0
    missed: Counter[str] = field(default_factory=Counter)
    next_starts: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    tolerated: Counter[str] = field(default_factory=Counter)
    user_code_ran: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def is_clean(self) -> bool:
        """Whether everything was as promised."""
        return not (self.user_code_ran or self.leaks or self.problems)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "points": self.points,
            "faults": self.faults,
            "not reached again": dict(sorted(self.missed.items())),
            "next starts": self.next_starts,
            "refused at": dict(self.refused.most_common()),
            "tolerated": dict(sorted(self.tolerated.items())),
            "user code ran": self.user_code_ran,
            "leaks": self.leaks,
            "problems": self.problems,
        }


class Failing(Protocol):
    """A scenario whose operations can fail one at a time."""

    found: Found

    def fail(self, operation: Operation, code: int) -> object:
        """Let an operation fail with an errno, and look at what that did."""


def fail_each(
    one: Failing,
    operations: Sequence[Operation],
    codes: Sequence[int],
    *,
    rotate: bool,
    until: Callable[[], bool],
) -> None:
    """Each operation fails with each errno, or with one in turn (`rotate`), until told to stop."""
    for turn, operation in enumerate(operations):
        for code in [codes[turn % len(codes)]] if rotate else codes:
            if until():
                one.found.problems.append(f"interrupted before {operation}")
                return
            one.fail(operation, code)
