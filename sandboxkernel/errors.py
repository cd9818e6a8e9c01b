"""Errors of the product, with the stable codes that the API, the CLI and the docs use. Pure.

SandboxError                 internal_error        500
├── RequestError             invalid_request       400
│   ├── LimitError           invalid_limit         400
│   ├── ProfileNotFound      profile_not_found     400
│   └── WorkFolderError      work_folder           400
├── NotPermitted             not_permitted         403
├── NotFound                 not_found             404
│   ├── KernelNotFound       kernel_not_found      404
│   ├── ImageNotFound        image_not_found       404
│   └── LayerNotFound        layer_not_found       404
├── Conflict                 conflict              409
│   └── KernelNotRunning     kernel_not_running    409
├── PayloadTooLarge          payload_too_large     413
├── ImageError               image_error           422
├── ResourcesExhausted       resources_exhausted   503
├── KernelStartFailed        kernel_start_failed   500  (.step, .errno)
├── RemovalPending           removal_pending       503
├── LauncherLost             launcher_lost         503
├── HostUnsupported          host_unsupported      501  (.feature)
└── DaemonUnavailable        daemon_unavailable    503  (raised by the client only)

`hint` says how to mend it and is always a separate field. docs/errors.md lists every code.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "ERRORS_BY_CODE",
    "Conflict",
    "DaemonUnavailable",
    "HostUnsupported",
    "ImageError",
    "ImageNotFound",
    "KernelNotFound",
    "KernelNotRunning",
    "KernelStartFailed",
    "LauncherLost",
    "LayerNotFound",
    "LimitError",
    "NotFound",
    "NotPermitted",
    "PayloadTooLarge",
    "ProfileNotFound",
    "RemovalPending",
    "RequestError",
    "ResourcesExhausted",
    "SandboxError",
    "WorkFolderError",
    "error_from_problem",
]


class SandboxError(Exception):
    """Base of every error of sandboxkernel.

    `message` is "what failed: why", lower case, without a full stop. `hint` says what to do.
    Attributes named in `facts` travel in the problem document and back.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    facts: ClassVar[tuple[str, ...]] = ()

    def __init__(self, message: str, *, hint: str = "", **facts: Any) -> None:
        unknown = set(facts) - set(self.facts)
        if unknown:
            raise TypeError(f"{type(self).__name__} has no facts {sorted(unknown)}")
        super().__init__(message)
        self.message = message
        self.hint = hint
        for name in self.facts:
            setattr(self, name, facts.get(name))

    def __str__(self) -> str:
        """The message with its hint: what a user of JupyterLab reads in a dialog."""
        return f"{self.message}. {self.hint}" if self.hint else self.message

    def to_problem(self) -> dict[str, Any]:
        """The RFC 9457 problem document of this error."""
        problem: dict[str, Any] = {
            "type": f"urn:sandboxkernel:error:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.message,
            "code": self.code,
            "hint": self.hint,
        }
        for name in self.facts:
            value = getattr(self, name)
            if value is not None:
                problem[name] = value
        return problem


class RequestError(SandboxError):
    """The request is malformed or asks for something that makes no sense; `field` says where."""

    code, status, title = "invalid_request", 400, "Invalid request"
    facts = ("field",)
    field: str | None


class LimitError(RequestError):
    """A limit that is zero, negative, absurd or above what the profile can give."""

    code, title = "invalid_limit", "Invalid limit"


class ProfileNotFound(RequestError):
    """No profile of this name is offered to the caller."""

    code, title = "profile_not_found", "No such profile"


class WorkFolderError(RequestError):
    """The work folder is missing, not the caller's to use, or outside what the profile allows."""

    code, title = "work_folder", "Work folder cannot be used"


class NotPermitted(SandboxError):
    """The caller may not do this."""

    code, status, title = "not_permitted", 403, "Not permitted"


class NotFound(SandboxError):
    """Nothing of this name, or nothing that the caller may know of."""

    code, status, title = "not_found", 404, "Not found"


class KernelNotFound(NotFound):
    """No kernel of this id belongs to the caller."""

    code, title = "kernel_not_found", "No such kernel"


class ImageNotFound(NotFound):
    """No image of this name or digest is in the store."""

    code, title = "image_not_found", "No such image"


class LayerNotFound(NotFound):
    """The user has no layer of this lineage."""

    code, title = "layer_not_found", "No such user layer"


class Conflict(SandboxError):
    """The object's present state does not allow this."""

    code, status, title = "conflict", 409, "Conflict"


class KernelNotRunning(Conflict):
    """The kernel has ended, so it can be neither signalled nor paused."""

    code, title = "kernel_not_running", "Kernel is not running"


class PayloadTooLarge(SandboxError):
    """The request body is over the limit."""

    code, status, title = "payload_too_large", 413, "Request too large"


class ImageError(SandboxError):
    """An image that is damaged, unsafe, or cannot be built."""

    code, status, title = "image_error", 422, "Image error"


class ResourcesExhausted(SandboxError):
    """A quota of the caller or a pool of the host is used up."""

    code, status, title = "resources_exhausted", 503, "Resources exhausted"
    facts = ("retry_after_s",)
    retry_after_s: int | None


class KernelStartFailed(SandboxError):
    """Set-up failed at `step`; nothing of the attempt is left on the host."""

    code, status, title = "kernel_start_failed", 500, "Kernel start failed"
    facts = ("step", "errno")
    step: str | None
    errno: int | None


class RemovalPending(SandboxError):
    """What runs has ended, but something of it cannot be given back yet; the daemon tries again."""

    code, status, title = "removal_pending", 503, "Removal is pending"


class LauncherLost(SandboxError):
    """The launcher was killed under this request. It has been started anew; kernels live on."""

    code, status, title = "launcher_lost", 503, "Launcher lost"


class HostUnsupported(SandboxError):
    """This host cannot enforce what was asked for, so the start is refused."""

    code, status, title = "host_unsupported", 501, "Host lacks a feature"
    facts = ("feature",)
    feature: str | None


class DaemonUnavailable(SandboxError):
    """No daemon answers on the socket. Raised by the client, never sent."""

    code, status, title = "daemon_unavailable", 503, "Daemon unavailable"


def _tree(base: type[SandboxError]) -> list[type[SandboxError]]:
    return [base, *(error for child in base.__subclasses__() for error in _tree(child))]


ERRORS_BY_CODE: dict[str, type[SandboxError]] = {error.code: error for error in _tree(SandboxError)}


def error_from_problem(problem: dict[str, Any]) -> SandboxError:
    """Rebuild the exception that a problem document describes; unknown codes give the base."""
    error_type = ERRORS_BY_CODE.get(str(problem.get("code")), SandboxError)
    facts = {name: problem[name] for name in error_type.facts if name in problem}
    message = str(problem.get("detail") or problem.get("title") or "unknown error")
    return error_type(message, hint=str(problem.get("hint") or ""), **facts)
