"""Walks through user layers, which may have millions of files. asyncio."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from weakref import WeakValueDictionary

__all__ = ["Walks"]

THREADS = 2

Found = TypeVar("Found")


class Walks:
    """In threads of their own, for every start needs those that asyncio has.

    One walk of a user's at a time, and one for all who ask the same. A caller who has gone ends
    none.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="walk")
        self._walks: dict[Hashable, asyncio.Task[Any]] = {}
        self._turns: WeakValueDictionary[int | None, asyncio.Lock] = WeakValueDictionary()

    async def run(
        self, uid: int | None, function: Callable[..., Found], *args: Hashable, **named: Hashable
    ) -> Found:
        """What `function` finds in the layers of `uid`; of everybody's with None."""
        key = (uid, function.__qualname__, args, tuple(named.items()))
        walk = self._walks.get(key)
        if walk is None:
            call = functools.partial(function, *args, **named)
            walk = self._walks[key] = asyncio.create_task(self._in_turn(uid, call))
            walk.add_done_callback(functools.partial(self._forget, key))
        found: Found = await asyncio.shield(walk)
        return found

    async def _in_turn(self, uid: int | None, call: Callable[[], Found]) -> Found:
        async with self._turns.setdefault(uid, asyncio.Lock()):
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _forget(self, key: Hashable, walk: asyncio.Task[Any]) -> None:
        del self._walks[key]
        if not walk.cancelled():
            walk.exception()  # it is told to whoever is still there
