"""The image store: an OCI image layout, and one unpacked tree per layer shared by all images.

    oci-layout  index.json  blobs/sha256/<hex>      OCI image-spec, image-layout.md
    unpacked/<diff_id hex>/                         lower layers for overlayfs
    tmp/  locks/                                    writers (staging.py)

Readers take no lock: documents are replaced by rename, blobs and trees appear whole and under
the name of their content. Writers hold `locks/store` only while they publish or delete.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from sandboxkernel.errors import ImageError, SandboxError
from sandboxkernel.images.digest import Digest
from sandboxkernel.images.gc import Contents, Garbage, plan_collection
from sandboxkernel.images.layers import TarResult, digest_tree
from sandboxkernel.images.manifest import (
    CONFIG_MEDIA_TYPE,
    LAYER_MEDIA_TYPE,
    MANIFEST_MEDIA_TYPE,
    REF_NAME_ANNOTATION,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    decode_document,
    encode_document,
)
from sandboxkernel.images.references import (
    check_name,
    find_descriptor,
    index_of,
    ref_of,
    with_entry,
)
from sandboxkernel.images.removal import remove_tree
from sandboxkernel.images.staging import (
    FULL_DISK,
    Stage,
    clean_stages,
    hash_file,
    hold_lock,
    stage,
    storage_errors,
    sync_directory,
)
from sandboxkernel.images.treewalk import measure_tree

__all__ = ["ImageStore", "StoredImage"]

_STORED_AT = "org.sandboxkernel.stored-at"
_LAYOUT = b'{"imageLayoutVersion": "1.0.0"}'
# Nobody reads these blobs without checking them, but a damaged one must not fill the memory.
_DOCUMENT_MAX_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image that kernels can start from. `layer_dirs` and `layers` are lowest first.

    `size_bytes` is the size of its blobs, shared ones included; `layers` are blob digests.
    """

    ref: str
    digest: Digest
    config: ImageConfig
    layer_dirs: tuple[Path, ...]
    size_bytes: int
    created_at: datetime
    labels: Mapping[str, str]
    layers: tuple[Digest, ...]

    @property
    def environment(self) -> dict[str, str]:
        """The Env of the image's configuration as a mapping."""
        pairs = (item.partition("=") for item in self.config.config.Env or [])
        return {name: value for name, _, value in pairs}


class ImageStore:
    """One store on disk. Safe for several processes and threads at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = root / "blobs" / "sha256"
        self._unpacked = root / "unpacked"
        self._tmp = root / "tmp"
        self._locks = root / "locks"

    # Reading

    def resolve(self, ref: str) -> StoredImage:
        """The image that a name, a digest or an unambiguous beginning of a digest means.

        Raises RequestError, ImageNotFound, or ImageError when parts of it are missing.
        """
        return self._load(find_descriptor(self._index().manifests, ref))

    def list(self) -> tuple[StoredImage, ...]:
        """All images, sorted by name; damaged ones are left out (verify names the damage)."""
        images = []
        for descriptor in self._index().manifests:
            try:
                images.append(self._load(descriptor))
            except SandboxError:
                continue  # one broken image must not hide the others
        by_name = sorted(images, key=lambda image: (image.ref.startswith("sha256:"), image.ref))
        return tuple(by_name)

    def verify(self, ref: str, known: dict[str, str] | None = None) -> tuple[str, ...]:
        """Hash an image's blobs and unpacked trees again; return what is wrong, one per line.

        Takes seconds, so what is in `known` (object to what is wrong with it, "" for nothing) is
        not looked at again, and what has been looked at is added: images share layers. Raises
        RequestError or ImageNotFound.
        """
        descriptor = find_descriptor(self._index().manifests, ref)
        try:
            manifest, config = self._documents(descriptor)
        except SandboxError as exc:
            return (exc.message,)
        looks = [
            *((f"{layer.digest} of {layer.size} bytes", partial(self._problem_of_blob, layer))
              for layer in manifest.layers),
            *((diff_id, partial(self._problem_of_tree, diff_id))
              for diff_id in config.rootfs.diff_ids),
        ]  # fmt: skip
        known = {} if known is None else known
        for name, look in looks:
            if name not in known:
                known[name] = look()
        return tuple(known[name] for name, _ in looks if known[name])

    def _problem_of_blob(self, layer: Descriptor) -> str:
        path = self._blobs / Digest.parse(layer.digest).hex
        if path.is_file() and hash_file(path) == (layer.digest, layer.size):
            return ""
        return f"layer blob {layer.digest} is missing or damaged"

    def _problem_of_tree(self, diff_id: str) -> str:
        tree = self._unpacked / Digest.parse(diff_id).hex
        if not tree.is_dir():
            return f"layer {diff_id} is not unpacked"
        return "" if str(digest_tree(tree)) == diff_id else f"unpacked layer {diff_id} was changed"

    def disk_usage(self) -> int:
        """Bytes that the store occupies on disk (st_blocks), everything included."""
        return measure_tree(self.root).size_bytes

    # Writing

    def build_lock(self, name: str) -> AbstractContextManager[None]:
        """Hold this while making the image `name`: the same is not made twice at once."""
        self._prepare()
        return hold_lock(self._locks / f"build-{check_name(name).replace('/', '_')}")

    @contextmanager
    def stage(self) -> Iterator[Stage]:
        """A place for a writer; what it does not publish is gone afterwards."""
        with storage_errors("write an image"):
            self._prepare()
            with hold_lock(self._locks / "store"):
                clean_stages(self._tmp)
                area = stage(self._tmp)
                made = area.__enter__()
            try:
                yield made
            finally:
                area.__exit__(None, None, None)

    def publish(
        self,
        made: Stage,
        ref: str,
        *,
        config: ImageConfig,
        layers: Sequence[TarResult],
    ) -> StoredImage:
        """Make a staged image visible under `ref`; the image that had the name loses it.

        That image stays, nameless, until a prune: sandboxes may still run from it.
        """
        check_name(ref)
        config_bytes = encode_document(config)
        config_digest = made.put(config_bytes)
        manifest = encode_document(
            Manifest(
                schema_version=2,
                media_type=MANIFEST_MEDIA_TYPE,
                config=Descriptor(
                    media_type=CONFIG_MEDIA_TYPE, digest=str(config_digest), size=len(config_bytes)
                ),
                layers=tuple(
                    Descriptor(media_type=LAYER_MEDIA_TYPE, digest=str(r.digest), size=r.size)
                    for r in layers
                ),
            )
        )
        digest = made.put(manifest)
        entry = Descriptor(
            media_type=MANIFEST_MEDIA_TYPE,
            digest=str(digest),
            size=len(manifest),
            annotations={
                REF_NAME_ANNOTATION: ref,
                _STORED_AT: datetime.now(UTC).isoformat(timespec="seconds"),
            },
        )
        # Thousands of small files: one sync(2) is far cheaper than an fsync(2) each.
        os.sync()
        with storage_errors(f"store image {ref}"), hold_lock(self._locks / "store"):
            self._move_in(made)
            self._write_index(with_entry(self._index(), entry))
        return self._load(entry)

    def remove(self, ref: str) -> StoredImage | None:
        """Remove an image and what only it needed; works on a full disk.

        The caller has made sure that nothing runs from it. Returns what was removed, None for
        an image that was damaged. Raises RequestError or ImageNotFound.
        """
        with storage_errors(f"remove image {ref!r}"), self._exclusively():
            index = self._index()
            descriptor = find_descriptor(index.manifests, ref)
            try:
                image = self._load(descriptor)
            except SandboxError:
                image = None
            remaining = tuple(d for d in index.manifests if d is not descriptor)
            self._shrink(index_of(remaining))
        return image

    def prune(
        self, *, dry_run: bool, in_use: frozenset[str] | None = None
    ) -> tuple[Sequence[str], int]:
        """Remove nameless images and whatever no image needs; return what, and bytes freed.

        `in_use` are digests of images that sandboxes run from; None says that the caller does
        not know, and then nameless images stay too.
        """
        if not self.root.is_dir():
            return (), 0
        with storage_errors("prune images"), self._exclusively():
            index = self._index()
            kept = index if in_use is None else self._named(index, in_use)
            paths = self._paths(self._garbage(kept))
            freed = sum(measure_tree(path).size_bytes for path in paths)
            gone = [d.digest for d in index.manifests if d not in kept.manifests]
            if not dry_run:
                self._shrink(kept)
        return (*gone, *(str(path.relative_to(self.root)) for path in paths)), freed

    # Internals

    def _prepare(self) -> None:
        """Make the store if it is new. Only root may look in: names tell who uses what."""
        self.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        for directory in (self._blobs, self._unpacked, self._tmp, self._locks):
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not (self.root / "oci-layout").exists():
            self._replace("oci-layout", _LAYOUT)

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        self._prepare()
        with hold_lock(self._locks / "store"):
            yield

    def _index(self) -> Index:
        try:
            content = (self.root / "index.json").read_bytes()
        except FileNotFoundError:
            return index_of(())
        return decode_document(content, Index, "index.json of the image store")

    def _named(self, index: Index, in_use: frozenset[str]) -> Index:
        kept = (
            d for d in index.manifests if REF_NAME_ANNOTATION in d.annotations or d.digest in in_use
        )
        return index_of(tuple(kept))

    def _blob(self, descriptor: Descriptor) -> bytes:
        path = self._blobs / Digest.parse(descriptor.digest).hex
        if descriptor.size > _DOCUMENT_MAX_BYTES:
            raise ImageError(f"cannot read {descriptor.digest}: larger than any document")
        try:
            content = path.read_bytes()
        except FileNotFoundError as exc:
            raise ImageError(f"image part {descriptor.digest} is missing in the store") from exc
        if f"sha256:{hashlib.sha256(content).hexdigest()}" != descriptor.digest:
            raise ImageError(f"image part {descriptor.digest} is damaged: its digest differs")
        return content

    def _documents(self, descriptor: Descriptor) -> tuple[Manifest, ImageConfig]:
        manifest = decode_document(
            self._blob(descriptor), Manifest, f"manifest {descriptor.digest}"
        )
        config = decode_document(
            self._blob(manifest.config), ImageConfig, f"image config {manifest.config.digest}"
        )
        if len(config.rootfs.diff_ids) != len(manifest.layers):
            raise ImageError(f"image {descriptor.digest} has not as many layers as diff_ids")
        return manifest, config

    def _load(self, descriptor: Descriptor) -> StoredImage:
        manifest, config = self._documents(descriptor)
        trees = tuple(self._unpacked / Digest.parse(d).hex for d in config.rootfs.diff_ids)
        for tree in trees:
            if not tree.is_dir():
                raise ImageError(
                    f"image {ref_of(descriptor)} is damaged: layer {tree.name[:12]} is missing",
                    hint="make it again, or remove it: sandboxkernel image rm",
                )
        stored_at = descriptor.annotations.get(_STORED_AT)
        return StoredImage(
            ref=ref_of(descriptor),
            digest=Digest.parse(descriptor.digest),
            config=config,
            layer_dirs=trees,
            size_bytes=descriptor.size
            + manifest.config.size
            + sum(layer.size for layer in manifest.layers),
            created_at=_time(stored_at, descriptor.digest),
            labels=dict(config.config.Labels or {}),
            layers=tuple(Digest.parse(layer.digest) for layer in manifest.layers),
        )

    def _move_in(self, made: Stage) -> None:
        for digest, source in made.blobs.items():
            os.replace(source, self._blobs / digest.hex)
        for diff_id, tree in made.trees.items():
            target = self._unpacked / diff_id.hex
            if not target.exists():  # else the same content is there, perhaps in use
                os.rename(tree, target)
        for directory in (self._blobs, self._unpacked):
            sync_directory(directory)

    def _replace(self, name: str, content: bytes) -> None:
        temporary = self.root / f".{name}.new"
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
            os.replace(temporary, self.root / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(self.root)

    def _write_index(self, index: Index) -> None:
        self._replace("index.json", encode_document(index))

    def _shrink(self, index: Index) -> None:
        """Write a smaller index, then delete what it does not need.

        On a full disk the other way round, which is safe: an entry without its parts counts as
        damaged, and the next removal or prune drops it.
        """
        garbage = self._garbage(index)
        try:
            self._write_index(index)
        except OSError as exc:
            if exc.errno not in FULL_DISK:
                raise
            self._delete(garbage)
            self._write_index(index)
        else:
            self._delete(garbage)
        clean_stages(self._tmp)

    def _garbage(self, index: Index) -> Garbage:
        reachable: list[tuple[Manifest, ImageConfig]] = []
        for descriptor in index.manifests:
            try:
                reachable.append(self._documents(descriptor))
            except SandboxError:
                continue  # damaged: it keeps its manifest, and nothing that cannot be read
        contents = Contents(frozenset(_names(self._blobs)), frozenset(_names(self._unpacked)))
        return plan_collection(index, reachable, contents)

    def _paths(self, garbage: Garbage) -> tuple[Path, ...]:
        return (
            *(self._blobs / name for name in garbage.blobs),
            *(self._unpacked / name for name in garbage.trees),
        )

    def _delete(self, garbage: Garbage) -> None:
        # Blobs first: on a full disk they free the block that the renames below may need.
        for name in garbage.blobs:
            remove_tree(self._blobs / name)
        for name in garbage.trees:
            # Away before it is emptied, so that no half tree ever has a layer's name.
            doomed = self._tmp / f"d-{name}"
            remove_tree(doomed)
            os.rename(self._unpacked / name, doomed)
            remove_tree(doomed)


_EPOCH = datetime.fromtimestamp(0, UTC)


def _time(text: str | None, digest: str) -> datetime:
    if not text:
        return _EPOCH
    try:
        found = datetime.fromisoformat(text)
    except ValueError as exc:
        raise ImageError(f"image {digest} was stored at {text[:80]!r}, which is no time") from exc
    if found.tzinfo is None:
        raise ImageError(f"image {digest} was stored at {text[:80]!r}, a time without a zone")
    return found


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
