"""Errors of the lower layers, converted once, and errors as problem documents. Pure."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

from sandboxkernel.errors import (
    HostUnsupported,
    KernelNotFound,
    KernelNotRunning,
    KernelStartFailed,
    RequestError,
    ResourcesExhausted,
    SandboxError,
    WorkFolderError,
)
from sandboxruntime import errors as runtime

__all__ = [
    "CONVERSIONS", "convert", "error_from_launcher", "exhausted", "is_the_requests",
    "told_if_ended",
]  # fmt: skip

RETRY_S = 5
# What the host has run out of (errno(3)), and what helps.
_EXHAUSTED = {
    errno.ENOSPC: "Free space where the daemon keeps its data: sandboxkernel system df.",
    errno.EDQUOT: "Free space where the daemon keeps its data: sandboxkernel system df.",
    errno.EMFILE: "Raise the daemon's limit of open files (LimitNOFILE).",
    errno.ENFILE: "Raise the host's limit of open files (fs.file-max).",
    errno.ENOMEM: "Free memory, or end kernels.",
}
# Of a working directory that is not there, or not the user's.
_NO_FOLDER = (
    errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG, errno.EXDEV,
)  # fmt: skip
DOCTOR_HINT = "Run `sandboxkernel doctor` on the host."


def is_the_requests(exc: SandboxError) -> bool:
    """Whether a start failed for what was asked for, which no other way to start makes better."""
    return isinstance(exc, RequestError) or (
        isinstance(exc, KernelStartFailed) and exc.step == "hand_over" and exc.errno in _NO_FOLDER
    )


@contextlib.contextmanager
def told_if_ended(kernel_id: str) -> Iterator[None]:
    """A cgroup that goes while it is used is a kernel that has ended. Raises KernelNotRunning."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in (errno.ENOENT, errno.ENODEV):
            raise
        raise KernelNotRunning(f"kernel {kernel_id} has ended") from exc


def _spec_error(message: str, facts: dict[str, Any]) -> SandboxError:
    field = facts.get("field")
    if field == "binds.source":
        return WorkFolderError(
            message, field="work_folder",
            hint="Open the notebook from a folder of yours that exists and the profile allows.",
        )  # fmt: skip
    return RequestError(message, field=field)


def _setup_error(message: str, facts: dict[str, Any]) -> SandboxError:
    return KernelStartFailed(
        message, step=str(facts.get("step", "")), errno=facts.get("errno"), hint=DOCTOR_HINT
    )


def _host_error(message: str, facts: dict[str, Any]) -> SandboxError:
    return HostUnsupported(
        message, feature=facts.get("feature"), hint=facts.get("hint") or DOCTOR_HINT
    )


# Every ContainerError class by name; a test fails when one is missing.
CONVERSIONS: dict[str, Callable[[str, dict[str, Any]], SandboxError]] = {
    "ContainerError": lambda message, _: SandboxError(message),
    "SpecError": _spec_error,
    "HostError": _host_error,
    "StateError": lambda message, _: KernelNotRunning(message),
    "ContainerNotFound": lambda message, _: KernelNotFound(message),
    "SetupError": _setup_error,
    "VerifyError": lambda message, _: KernelStartFailed(message, step="verify", hint=DOCTOR_HINT),
}


def error_from_launcher(error: dict[str, Any]) -> SandboxError:
    """The product's error for one that travelled from the launcher."""
    conversion = CONVERSIONS.get(error["type"])
    if conversion is None:
        return _setup_error(f"{error['type']}: {error['message']}", error)
    return conversion(error["message"], error)


def convert(exc: runtime.ContainerError) -> SandboxError:
    """The product's error for one raised in this process."""
    return CONVERSIONS[type(exc).__name__](str(exc), vars(exc))


def exhausted(exc: BaseException | None) -> ResourcesExhausted | None:
    """The product's error where the host has run out of something; None for everything else."""
    code = errno.ENOMEM if isinstance(exc, MemoryError) else getattr(exc, "errno", None) or 0
    if not isinstance(exc, OSError | MemoryError) or code not in _EXHAUSTED:
        return None
    return ResourcesExhausted(
        f"the host has run out: {os.strerror(code).lower()}",
        hint=_EXHAUSTED[code],
        retry_after_s=RETRY_S,
    )
