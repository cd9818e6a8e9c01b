"""Which blobs and trees of a store no image needs: mark and sweep, decided only. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sandboxkernel.images.manifest import ImageConfig, Index, Manifest

__all__ = ["Contents", "Garbage", "plan_collection"]


@dataclass(frozen=True, slots=True)
class Contents:
    """File names in blobs/sha256 and in unpacked."""

    blobs: frozenset[str]
    trees: frozenset[str]


@dataclass(frozen=True, slots=True)
class Garbage:
    """Names to delete, sorted."""

    blobs: tuple[str, ...]
    trees: tuple[str, ...]


def plan_collection(
    index: Index, images: Iterable[tuple[Manifest, ImageConfig]], contents: Contents
) -> Garbage:
    """Everything in `contents` that neither the index nor one of `images` refers to."""
    digests = {descriptor.digest for descriptor in index.manifests}
    diff_ids: set[str] = set()
    for manifest, config in images:
        digests.add(manifest.config.digest)
        digests.update(layer.digest for layer in manifest.layers)
        diff_ids.update(config.rootfs.diff_ids)
    return Garbage(
        tuple(sorted(contents.blobs - {d.removeprefix("sha256:") for d in digests})),
        tuple(sorted(contents.trees - {d.removeprefix("sha256:") for d in diff_ids})),
    )
