"""Errors of the lower layers, converted once, and errors as problem documents. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sandboxkernel.errors import (
    HostUnsupported,
    KernelNotFound,
    KernelNotRunning,
    KernelStartFailed,
    RequestError,
    SandboxError,
    WorkFolderError,
)
from sandboxruntime import errors as runtime

__all__ = ["CONVERSIONS", "convert", "error_from_launcher"]

DOCTOR_HINT = "Run `sandboxkernel doctor` on the host."


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
