"""A request to the launcher that has not been answered yet, and errors as they are answered."""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass, field
from typing import Any

from sandboxruntime.errors import ContainerError, SpecError
from sandboxruntime.status import Readable, Waiting

__all__ = ["Message", "Request", "encode_error"]

Message = dict[str, Any]


def encode_error(exc: BaseException) -> Message:
    """An error as it travels to the daemon: class name, message and the class's own facts."""
    facts = {name: value for name, value in vars(exc).items() if isinstance(value, str | int)}
    return {"type": type(exc).__name__, "message": str(exc), **facts}


@dataclass(slots=True, eq=False)
class Request:
    """`work` is what is done for it, and `wait` what that waits for."""

    message: Message
    reply_fds: list[int] = field(default_factory=list)
    work: Waiting[Message] | None = None
    wait: Readable | None = None

    @property
    def creates(self) -> object:
        """The id of the container that it makes, None for other requests."""
        spec = self.message.get("spec")
        if self.message.get("op") != "create" or not isinstance(spec, dict):
            return None
        return spec.get("container_id")

    def refusal(self, exc: BaseException) -> Message:
        """The error of its answer."""
        op = str(self.message.get("op"))
        if isinstance(exc, ContainerError):
            return encode_error(exc)
        if isinstance(exc, OSError):  # outside of any step: the operation is the step
            return {**encode_error(exc), "step": op}
        sys.stderr.write("".join(traceback.format_exception(exc)))  # it makes no sense
        return encode_error(SpecError(f"request {op!r}: {exc!r}"[:500], field="op"))
