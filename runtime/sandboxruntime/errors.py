"""Errors and exit values of the container runtime. Pure.

ContainerError
├── SpecError          (.field)              the spec asks for something invalid
├── HostError          (.feature, .hint)     this host cannot give what the spec asks for
├── StateError         (.container_id, .status)
├── ContainerNotFound  (.container_id)
├── SetupError         (.step, .errno)       a set-up step failed; nothing is left behind
└── VerifyError        (.check)              outside verification found a mismatch
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from sandboxruntime.steps import Step

__all__ = [
    "ContainerError",
    "ContainerNotFound",
    "ExitReason",
    "ExitStatus",
    "HostError",
    "SetupError",
    "SpecError",
    "StateError",
    "VerifyError",
]


class ContainerError(Exception):
    """Base of everything this package raises on purpose."""


class SpecError(ContainerError):
    """A spec that no host could run; `field` is a dotted path into the spec."""

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field


class HostError(ContainerError):
    """A requested limit or confinement that this host cannot give."""

    def __init__(self, message: str, *, feature: str, hint: str = "") -> None:
        super().__init__(message)
        self.feature = feature
        self.hint = hint


class StateError(ContainerError):
    """An operation that the container's present status does not allow."""

    def __init__(self, message: str, *, container_id: str, status: str) -> None:
        super().__init__(message)
        self.container_id = container_id
        self.status = status


class ContainerNotFound(ContainerError):
    """No container has this id."""

    def __init__(self, container_id: str) -> None:
        super().__init__(f"no container {container_id!r}")
        self.container_id = container_id


class SetupError(ContainerError):
    """Set-up failed at `step`; everything acquired before it has been released."""

    def __init__(self, message: str, *, step: Step, errno: int = 0) -> None:
        super().__init__(message)
        self.step = step
        self.errno = errno


class VerifyError(ContainerError):
    """The container is not as confined as its spec says; it has been killed."""

    def __init__(self, message: str, *, check: str) -> None:
        super().__init__(message)
        self.check = check


class ExitReason(enum.StrEnum):
    """Why a container's process ended."""

    EXITED = "exited"  # called exit()
    SIGNALED = "signaled"  # killed by a signal it or we sent
    OOM_KILLED = "oom_killed"  # told apart by the cgroup's counter, never by 137


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a container's process ended: a value, not an error."""

    reason: ExitReason
    code: int | None = None  # for EXITED
    signum: int | None = None  # for the others
