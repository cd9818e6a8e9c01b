"""What happened, for whoever may know: a bounded history and live subscribers. asyncio."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

from sandboxkernel.models import Event

__all__ = ["HISTORY_MAX", "EventLog"]

HISTORY_MAX = 1000
QUEUE_MAX = 1000  # a subscriber that is further behind loses the oldest


class EventLog:
    """Publish and subscribe; nothing here blocks the publisher."""

    def __init__(self) -> None:
        self._history: deque[Event] = deque(maxlen=HISTORY_MAX)
        self._subscribers: set[asyncio.Queue[Event]] = set()

    def publish(
        self,
        action: str,
        *,
        kernel_id: str | None = None,
        owner_uid: int | None = None,
        **detail: Any,
    ) -> None:
        """Record an event and pass it to the subscribers."""
        event = Event(
            time=datetime.now(UTC),
            action=action,
            kernel_id=kernel_id,
            owner_uid=owner_uid,
            detail=detail,
        )
        self._history.append(event)
        for queue in self._subscribers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)

    def history(self, visible: Callable[[Event], bool], since: datetime | None) -> list[Event]:
        """Past events that the caller may see."""
        return [e for e in self._history if visible(e) and (since is None or e.time >= since)]

    async def follow(self, visible: Callable[[Event], bool]) -> AsyncIterator[Event]:
        """Events from now on, until the consumer stops."""
        queue: asyncio.Queue[Event] = asyncio.Queue(QUEUE_MAX)
        self._subscribers.add(queue)
        try:
            while True:
                event = await queue.get()
                if visible(event):
                    yield event
        finally:
            self._subscribers.discard(queue)
