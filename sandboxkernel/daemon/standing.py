"""Spares that wait before anybody has started anything: a class that begins at once. asyncio."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from sandboxkernel.daemon.images import Images
from sandboxkernel.daemon.zygote import Key
from sandboxkernel.daemon.zygotes import Zygotes
from sandboxkernel.errors import SandboxError
from sandboxkernel.limits import Profile

__all__ = ["Standing"]

log = logging.getLogger(__name__)

LOOK_S = 5.0  # a zygote can end at any time, and the launcher with all of them
RETRY_S = 60.0  # after an image that is not there, or while memory is short


class Standing:
    """Sees to it that each profile with `min_spares` has a zygote, which makes the spares."""

    def __init__(self, profiles: Iterable[Profile], images: Images, zygotes: Zygotes) -> None:
        self._profiles = [profile for profile in profiles if profile.min_spares]
        self._images = images
        self._zygotes = zygotes
        self._not_before: dict[str, float] = {}

    async def keep(self) -> None:
        """Until it is cancelled."""
        while self._profiles:
            for profile in self._profiles:
                due = time.monotonic() >= self._not_before.get(profile.name, 0.0)
                if due and not self._zygotes.is_served(profile.name):
                    await self._prepare(profile)
            await asyncio.sleep(LOOK_S)

    async def _prepare(self, profile: Profile) -> None:
        try:
            image = await self._images.ensure(profile.image)
            key = Key.shared(str(image.digest), profile)
            self._zygotes.want(key, image, profile)
            lack = "" if self._zygotes.is_served(profile.name) else self._zygotes.why_none(key)
        except (SandboxError, OSError) as exc:
            lack = str(exc)
        if lack:
            log.warning("profile %s has no spares for now: %s", profile.name, lack)
            self._not_before[profile.name] = time.monotonic() + RETRY_S
