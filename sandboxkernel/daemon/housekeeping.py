"""Disk: user layers, images, scratch. Slow work runs off the event loop. asyncio."""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path

from sandboxkernel.daemon.images import lineage_of
from sandboxkernel.daemon.launcher_client import LauncherClient
from sandboxkernel.daemon.service import Kernels
from sandboxkernel.daemon.walks import Walks
from sandboxkernel.errors import Conflict
from sandboxkernel.images.removal import remove_tree
from sandboxkernel.images.store import StoredImage
from sandboxkernel.images.treewalk import measure_tree
from sandboxkernel.images.userlayers import UserLayers
from sandboxkernel.models import (
    DiskUsage,
    DiskUsageEntry,
    PruneReport,
    UserLayer,
    UserLayerDiff,
)
from sandboxkernel.paths import Paths

__all__ = ["Housekeeping"]

log = logging.getLogger(__name__)


class Housekeeping:
    """What lists, measures and deletes."""

    def __init__(
        self, kernels: Kernels, layers: UserLayers, launcher: LauncherClient, paths: Paths
    ) -> None:
        self._kernels = kernels
        self._layers = layers
        self._launcher = launcher
        self._paths = paths
        self._walks = Walks()

    async def layers(self, uid: int | None) -> list[UserLayer]:
        """User layers of one user, or of everybody with None."""
        stored = await self._walks.run(uid, self._layers.list, uid)
        return [
            UserLayer(
                owner_uid=layer.owner_uid,
                lineage=layer.lineage,
                size_bytes=layer.size_bytes,
                files=layer.files,
                in_use=self._kernels.layer_in_use(layer.upper),
                modified_at=layer.modified_at,
            )
            for layer in stored
        ]

    async def diff_layer(self, uid: int, lineage: str, limit: int) -> UserLayerDiff:
        """What a layer changes, against the image of its lineage that is in the store."""
        images = await asyncio.to_thread(self._kernels.images.store.list)
        dirs: tuple[Path, ...] = next(
            (image.layer_dirs for image in images if lineage_of(image) == lineage), ()
        )
        changes = await self._walks.run(
            uid, self._layers.diff, uid, lineage, layer_dirs=dirs, limit=limit + 1
        )
        return UserLayerDiff(
            lineage=lineage, changes=changes[:limit], truncated=len(changes) > limit
        )

    async def reset_layer(self, uid: int, lineage: str) -> None:
        """Delete a layer. Conflict while a sandbox uses it."""
        upper = self._layers.upper_of(uid, lineage)
        in_use = self._kernels.layer_in_use(upper)
        if not in_use:
            reply, _ = await self._launcher.request("forget", upper=str(upper))
            in_use = 0 if reply["released"] else 1
        if in_use:
            raise Conflict(
                f"layer {lineage} is in use by {in_use} kernels", hint="Shut them down first."
            )
        await asyncio.to_thread(self._layers.reset, uid, lineage)

    async def remove_image(self, image: StoredImage) -> None:
        """Delete an image; its zygotes and cached overlays go with it."""
        await self._kernels.zygotes.forget_image(str(image.digest))
        await self._forget_unused_overlays()
        self._kernels.images.forget_host()
        await asyncio.to_thread(self._kernels.images.store.remove, image.ref)

    async def _forget_unused_overlays(self) -> None:
        for layer in await self._walks.run(None, self._layers.list, None):
            if not self._kernels.layer_in_use(layer.upper):
                await self._launcher.request("forget", upper=str(layer.upper))

    async def disk_usage(self) -> DiskUsage:
        """Blocks in use by kind."""
        images = await asyncio.to_thread(self._kernels.images.store.list)
        image_bytes = await asyncio.to_thread(self._kernels.images.store.disk_usage)
        layers = await self._walks.run(None, self._layers.list, None)
        scratch = self._stale_scratch(everything=True)
        scratch_bytes = await asyncio.to_thread(sum, map(_blocks_of, scratch))
        stale_bytes = await asyncio.to_thread(sum, map(_blocks_of, self._stale_scratch()))
        unused = sum(i.size_bytes for i in images if not self._kernels.image_in_use(str(i.digest)))
        free = shutil.disk_usage(self._paths.data_dir).free
        entries = [
            DiskUsageEntry(kind="images", count=len(images), size_bytes=image_bytes,
                           reclaimable_bytes=min(unused, image_bytes)),
            DiskUsageEntry(kind="user_layers", count=len(layers), reclaimable_bytes=0,
                           size_bytes=sum(layer.size_bytes for layer in layers)),
            DiskUsageEntry(kind="scratch", count=len(scratch), size_bytes=scratch_bytes,
                           reclaimable_bytes=stale_bytes),
        ]  # fmt: skip
        return DiskUsage(entries=entries, free_bytes=free)

    async def prune(self, *, dry_run: bool) -> PruneReport:
        """Remove blobs and trees of no image, and scratch layers of no sandbox. No user layer."""
        removed, freed = await asyncio.to_thread(self._kernels.images.store.prune, dry_run=dry_run)
        names = [f"image data {name}" for name in removed]
        for path in self._stale_scratch():
            size = await asyncio.to_thread(_blocks_of, path)
            if not dry_run:
                try:
                    await asyncio.to_thread(remove_tree, path)
                except OSError as exc:
                    log.warning("cannot remove %s: %s", path, exc)
                    continue
            freed += size
            names.append(f"scratch {path.name}")
        return PruneReport(removed=names, freed_bytes=freed, dry_run=dry_run)

    def _stale_scratch(self, *, everything: bool = False) -> list[Path]:
        directory = self._paths.scratch_dir
        if not directory.is_dir():
            return []
        # Looked at first: a lease is written before its scratch layer is made.
        found = [p for p in sorted(directory.iterdir()) if not p.name.startswith(".")]
        live = self._kernels.leases()
        return [p for p in found if everything or p.name not in live]


def _blocks_of(tree: Path) -> int:
    """Bytes of disk blocks below a path; links are counted, not followed."""
    return measure_tree(tree).size_bytes
