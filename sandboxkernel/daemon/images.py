"""Images for the daemon: preparation off the event loop, once for all who wait. asyncio."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from sandboxkernel.images.hostimage import ensure_host_image
from sandboxkernel.images.store import ImageStore, StoredImage
from sandboxkernel.models import Image, Progress

__all__ = ["HOST_REF", "Images", "lineage_of"]

log = logging.getLogger(__name__)

HOST_REF = "host"
# How often a start makes us look whether the host's packages have changed: 50 to 100 ms of work,
# done when no start has come for a while, or it would slow down the start that called for it.
HOST_CHECK_S = 5.0
QUIET_S = 1.0


class Images:
    """One preparation of an image at a time; later callers see the progress of the first."""

    def __init__(self, store: ImageStore) -> None:
        self.store = store
        self._host: StoredImage | None = None
        self._host_checked = 0.0
        self._asked = 0.0
        self._check: asyncio.Task[None] | None = None
        self._task: asyncio.Task[StoredImage] | None = None
        self._listeners: set[Callable[[Progress], None]] = set()

    async def ensure(
        self,
        ref: str,
        *,
        refresh: bool = False,
        progress: Callable[[Progress], None] | None = None,
    ) -> StoredImage:
        """The image, built or refreshed first if it is the host image and not current.

        Raises ImageNotFound or ImageError.
        """
        if ref != HOST_REF:
            return await asyncio.to_thread(self.store.resolve, ref)
        if self._host is not None and not refresh:
            # Off the path of the start: a changed host image serves starts a moment later.
            self._asked = time.monotonic()
            if self._check is None:
                self._check = asyncio.create_task(self._check_host())
                self._check.add_done_callback(_log_failure)
            return self._host
        if progress is not None:
            self._listeners.add(progress)
        try:
            if self._task is None:
                self._task = asyncio.create_task(self._prepare_host(refresh=refresh))
            # Somebody else may wait for the same build: a caller that gives up does not end it.
            return await asyncio.shield(self._task)
        finally:
            if progress is not None:
                self._listeners.discard(progress)

    async def _check_host(self) -> None:
        """Look whether the host image is current, once no start has come for a while."""
        try:
            called = time.monotonic()
            while (
                pause := _pause_s(time.monotonic(), called, self._asked, self._host_checked)
            ) > 0:
                await asyncio.sleep(pause)
            if self._task is None:
                self._task = asyncio.create_task(self._prepare_host(refresh=False))
            await asyncio.shield(self._task)
        finally:
            self._check = None

    async def _prepare_host(self, *, refresh: bool) -> StoredImage:
        loop = asyncio.get_running_loop()
        started = time.monotonic()

        def report(step: Progress) -> None:
            loop.call_soon_threadsafe(self._tell, step)

        try:
            image = await asyncio.to_thread(
                ensure_host_image, self.store, progress=report, refresh=refresh
            )
            self._host, self._host_checked = image, time.monotonic()
            log.debug("host image ready", extra={"duration_s": time.monotonic() - started})
            return image
        finally:
            self._task = None

    def _tell(self, step: Progress) -> None:
        for listener in list(self._listeners):
            listener(step)

    def model(self, image: StoredImage, in_use: int) -> Image:
        """What the API says of an image."""
        return Image(
            ref=image.ref,
            digest=str(image.digest),
            size_bytes=image.size_bytes,
            layers=[str(layer) for layer in image.layers],
            created_at=image.created_at,
            labels=dict(image.labels),
            in_use=in_use,
        )

    def forget_host(self) -> None:
        """Look again at the next use: the image may have been removed."""
        self._host = None


def _pause_s(now: float, called: float, asked: float, checked: float) -> float:
    """How long to wait with a look at the host's packages. Pure; everything is in seconds.

    A start called for it at `called`, the last one came at `asked`, the last look was at `checked`.
    """
    due = checked + HOST_CHECK_S
    latest = max(due, called) + HOST_CHECK_S  # however many starts come
    return min(max(due, asked + QUIET_S), latest) - now


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("cannot refresh the host image", exc_info=task.exception())


def lineage_of(image: StoredImage) -> str:
    """The name of the user layers that fit an image: its label, else its ref."""
    return str(image.labels.get("org.sandboxkernel.lineage") or image.ref.replace("/", "_"))
