"""Documents of the OCI image spec as typed structs, and their canonical bytes. Pure.

Member names are the spec's (manifest.md, config.md, image-index.md); members that we do not use
are ignored when a document is read.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from sandboxkernel.errors import ImageError

__all__ = [
    "CONFIG_MEDIA_TYPE",
    "INDEX_MEDIA_TYPE",
    "LAYER_MEDIA_TYPE",
    "MANIFEST_MEDIA_TYPE",
    "REF_NAME_ANNOTATION",
    "ContainerConfig",
    "Descriptor",
    "History",
    "ImageConfig",
    "Index",
    "Manifest",
    "RootFs",
    "decode_document",
    "encode_document",
]

INDEX_MEDIA_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_MEDIA_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_MEDIA_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_MEDIA_TYPE = "application/vnd.oci.image.layer.v1.tar"
REF_NAME_ANNOTATION = "org.opencontainers.image.ref.name"
# Beyond, sums of sizes would be numbers that no answer of the API can hold (RFC 8259, section 6).
_SIZE_MAX = (1 << 53) - 1


class Descriptor(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A reference to a blob: what it is, its digest and its size in bytes."""

    media_type: str = field(name="mediaType")
    digest: str
    size: Annotated[int, Meta(ge=0, le=_SIZE_MAX)]
    annotations: dict[str, str] = {}


class Manifest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An image: one configuration and its layers, lowest first."""

    schema_version: int = field(name="schemaVersion")
    media_type: str = field(name="mediaType", default="")
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str] = {}


class Index(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The manifests of an image layout."""

    schema_version: int = field(name="schemaVersion")
    media_type: str = field(name="mediaType", default="")
    manifests: tuple[Descriptor, ...] = ()


class RootFs(Struct, frozen=True, kw_only=True):
    """The uncompressed layers of an image, lowest first."""

    type: str
    diff_ids: tuple[str, ...]


class History(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one layer came to be."""

    created: str | None = None
    created_by: str | None = None
    comment: str | None = None
    empty_layer: bool = False


class ContainerConfig(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Defaults for a process started from the image."""

    User: str | None = None
    Env: tuple[str, ...] | None = None
    Entrypoint: tuple[str, ...] | None = None
    Cmd: tuple[str, ...] | None = None
    WorkingDir: str | None = None
    Labels: dict[str, str] | None = None


class ImageConfig(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The configuration blob of an image."""

    created: str | None = None
    architecture: str
    os: str
    config: ContainerConfig = ContainerConfig()
    rootfs: RootFs
    history: tuple[History, ...] = ()


_Document = TypeVar("_Document", Index, Manifest, ImageConfig)
_MEDIA_TYPES: dict[type[Struct], str] = {
    Index: INDEX_MEDIA_TYPE,
    Manifest: MANIFEST_MEDIA_TYPE,
    ImageConfig: "",
}


def decode_document(content: bytes, document_type: type[_Document], name: str) -> _Document:
    """Parse a document; `name` says which in the error. Raises ImageError."""
    try:
        # As text: what msgspec passes over, it does not look at for bytes that are no UTF-8.
        found = msgspec.json.decode(content.decode(), type=document_type)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise ImageError(f"cannot read {name}: {exc}") from exc
    # One blob must not be an index to one reader and a manifest to another (CVE-2021-41190).
    said = getattr(found, "media_type", "")
    if said not in ("", _MEDIA_TYPES[document_type]):
        raise ImageError(f"cannot read {name}: it says that it is {said[:80]!r}")
    return found


def encode_document(document: Index | Manifest | ImageConfig) -> bytes:
    """The canonical bytes of a document: the same value always gives the same digest."""
    return msgspec.json.encode(document, order="sorted")
