"""Further programs in sandboxes, until the launcher tells their ends. asyncio."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from sandboxkernel.daemon.launcher_client import LauncherClient
from sandboxkernel.errors import LauncherLost

__all__ = ["Execs"]


class Execs:
    """Who waits for which program."""

    def __init__(self, launcher: LauncherClient) -> None:
        self._launcher = launcher
        self._waiting: dict[int, asyncio.Future[int | None]] = {}

    def new_future(self) -> asyncio.Future[int | None]:
        """A future for the wait status of a program."""
        return asyncio.get_running_loop().create_future()

    async def start(
        self, sandbox_id: str, fds: list[int], exited: asyncio.Future[int | None]
    ) -> None:
        """Ask the launcher for one more process in a sandbox; `exited` will get its status.

        Whoever no longer wants the status cancels `exited`.
        """
        request = asyncio.ensure_future(
            self._launcher.request("exec", fds, container_id=sandbox_id)
        )
        try:
            reply, _ = await asyncio.shield(request)
        except asyncio.CancelledError:
            # The launcher goes on, with our descriptors, whoever has gone: nothing may be frozen.
            await asyncio.wait([request])
            raise
        exec_id = int(reply["exec_id"])
        self._waiting[exec_id] = exited
        exited.add_done_callback(lambda _: self._waiting.pop(exec_id, None))

    def on_exit(self, event: dict[str, Any]) -> None:
        """One has ended, as the launcher reports it."""
        exited = self._waiting.get(cast(int, event["exec_id"]))
        if exited is not None and not exited.done():
            exited.set_result(cast("int | None", event["wait_status"]))

    def lose(self) -> None:
        """The launcher was killed."""
        lost = LauncherLost("the launcher was killed, and with it what is known of this program")
        for exited in self._waiting.values():
            if not exited.done():
                exited.set_exception(lost)
