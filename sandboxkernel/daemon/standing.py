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
RETRY_S = 60.0  # after an image that is not there


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
                try:
                    await self._prepare(profile)
                except (SandboxError, OSError) as exc:
                    log.warning("profile %s has no spares for now: %s", profile.name, exc)
                    self._not_before[profile.name] = time.monotonic() + RETRY_S
            await asyncio.sleep(LOOK_S)

    async def _prepare(self, profile: Profile) -> None:
        if self._zygotes.is_served(profile.name):
            return
        if time.monotonic() >= self._not_before.get(profile.name, 0.0):
            image = await self._images.ensure(profile.image)
            self._zygotes.want(Key.shared(str(image.digest), profile), image, profile)
