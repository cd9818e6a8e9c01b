"""Handlers about users' layers and the daemon itself, thin. tornado."""

from __future__ import annotations

from sandboxkernel.daemon.handler import Handler
from sandboxkernel.errors import RequestError
from sandboxkernel.models import UserLayerList

__all__ = [
    "CheckHandler",
    "DiskUsageHandler",
    "LayerDiffHandler",
    "LayerHandler",
    "LayersHandler",
    "PruneHandler",
    "ZygotesHandler",
]


class LayersHandler(Handler):
    """User layers."""

    async def get(self, user: str) -> None:
        """The layers of `me`, a uid, or `all`."""
        uid = self._uid(user)
        self.reply(UserLayerList(layers=await self.services.housekeeping.layers(uid)))

    def _uid(self, user: str) -> int | None:
        if user == "me":
            return self.caller.uid
        if user != str(self.caller.uid):
            self.require_admin()
        if user == "all":
            return None
        if not user.isascii() or not user.isdecimal() or len(user) > 10:
            raise RequestError(f"user {user[:40]!r} is not a uid, 'me' or 'all'", field="user")
        return int(user)


class LayerHandler(LayersHandler):
    """One user layer."""

    async def delete(self, user: str, lineage: str) -> None:
        """Reset it; refused while in use."""
        uid = self._uid(user)
        if uid is None:
            raise RequestError("name one user", field="user")
        await self.services.housekeeping.reset_layer(uid, lineage)
        self.reply_empty()


class LayerDiffHandler(LayersHandler):
    """Differences of a user layer."""

    async def get(self, user: str, lineage: str) -> None:  # type: ignore[override]
        """What it adds, changes and deletes."""
        uid = self._uid(user)
        if uid is None:
            raise RequestError("name one user", field="user")
        limit = self.number("limit", 1000, least=1, most=100_000)
        self.reply(await self.services.housekeeping.diff_layer(uid, lineage, limit))


class DiskUsageHandler(Handler):
    """Disk usage."""

    async def get(self) -> None:
        """Blocks in use by kind."""
        self.require_admin()
        self.reply(await self.services.housekeeping.disk_usage())


class CheckHandler(Handler):
    """Leftovers and damage."""

    async def post(self) -> None:
        """Look for them, and mend what can be."""
        self.require_admin()
        self.reply(await self.services.checkup.run(repair=self.flag("repair")))


class PruneHandler(Handler):
    """Give disk space back."""

    async def post(self) -> None:
        """Remove what nothing uses."""
        self.require_admin()
        self.reply(await self.services.housekeeping.prune(dry_run=self.flag("dry_run")))


class ZygotesHandler(Handler):
    """What kernels are forked from."""

    async def get(self) -> None:
        """Zygotes and their spares."""
        self.require_admin()
        self.reply(self.kernels.zygotes.describe())
