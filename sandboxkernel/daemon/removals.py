"""What could not be given back, tried again until it is. asyncio.

A removal fails for reasons that pass: a mount of somebody else's holds a directory, a process does
not die yet, a disk answers EIO. Nothing is given up: the interval grows to RETRY_MAX_S and stays
there. What is pending when the daemon stops is in the journal, and the next one begins anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sandboxkernel.errors import SandboxError
from sandboxkernel.models import Removal
from sandboxruntime.errors import ContainerError

__all__ = ["FAILURES", "RETRY_MAX_S", "Removals", "retry_delay"]

log = logging.getLogger(__name__)

RETRY_FIRST_S = 1.0
RETRY_MAX_S = 300.0
# What a removal may fail with; anything else is an error of ours.
FAILURES = (SandboxError, ContainerError, OSError)


def retry_delay(attempts: int) -> float:
    """Seconds until the next try, after so many. Pure."""
    return min(RETRY_FIRST_S * 2.0 ** min(attempts - 1, 16), RETRY_MAX_S)


@dataclass(slots=True)
class _Pending:
    again: Callable[[], Awaitable[object]]
    due: float  # monotonic
    state: Removal


class Removals:
    """All removals of this daemon that have failed, by the id of what is removed."""

    def __init__(self) -> None:
        self._pending: dict[str, _Pending] = {}
        self._task: asyncio.Task[None] | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._pending

    def get(self, name: str) -> Removal | None:
        """How it is with a removal that has failed."""
        found = self._pending.get(name)
        return found.state if found is not None else None

    def all(self) -> dict[str, Removal]:
        """Every one of them."""
        return {name: pending.state for name, pending in self._pending.items()}

    def failed(
        self, name: str, error: BaseException, again: Callable[[], Awaitable[object]]
    ) -> Removal:
        """Note a failure: `again` is awaited until it succeeds. It may call this by itself."""
        known, now = self.get(name), datetime.now(UTC)
        attempts = known.attempts + 1 if known is not None else 1
        delay = retry_delay(attempts)
        state = Removal(
            reason=str(error) or type(error).__name__,
            attempts=attempts,
            since=known.since if known is not None else now,
            next_at=now + timedelta(seconds=delay),
        )
        self._pending[name] = _Pending(again, time.monotonic() + delay, state)
        log.warning(
            "cannot give back %s (attempt %d, again in %g s): %s",
            name, attempts, delay, state.reason,
        )  # fmt: skip
        return state

    def done(self, name: str) -> None:
        """It has been given back, by whomever. Idempotent."""
        pending = self._pending.pop(name, None)
        if pending is not None:
            log.info("%s is given back, after %d failures", name, pending.state.attempts)

    def run_due(self) -> None:
        """Try again what is due, in the background and one after another."""
        if self._task is not None and not self._task.done():
            return
        now = time.monotonic()
        due = [name for name, pending in self._pending.items() if pending.due <= now]
        if due:
            self._task = asyncio.create_task(self._run(due))

    async def run_all(self) -> None:
        """Try every one of them again now: somebody has asked for it."""
        await self._run(list(self._pending))

    async def _run(self, due: list[str]) -> None:
        for name in due:
            pending = self._pending.get(name)
            if pending is None:
                continue  # somebody has asked for it meanwhile
            try:
                await pending.again()
            except FAILURES as exc:
                if self._pending.get(name) is pending:  # or `again` has noted it
                    self.failed(name, exc, pending.again)
            except Exception:
                log.exception("giving back %s failed in an unexpected way", name)
                self.failed(name, RuntimeError("internal error, see the log"), pending.again)
            else:
                self.done(name)

    async def close(self) -> None:
        """Try no more: the daemon stops."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
