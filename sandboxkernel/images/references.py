"""Names of images, and which image of an index they mean. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from sandboxkernel.errors import ImageNotFound, RequestError
from sandboxkernel.images.digest import Digest
from sandboxkernel.images.manifest import INDEX_MEDIA_TYPE, REF_NAME_ANNOTATION, Descriptor, Index

__all__ = ["check_name", "find_descriptor", "index_of", "ref_of", "with_entry"]

REF_MAX = 255  # characters, as registries allow
_PREFIX_MIN = 4  # hex digits: fewer is more likely a name than a digest
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
# Names and tags as in the OCI distribution spec ("Pulling manifests"), with an optional registry.
_NAME = re.compile(
    rf"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::[0-9]+)?/)?"
    rf"{_COMPONENT}(?:/{_COMPONENT})*(?::[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}})?"
)
_HEX = re.compile(r"(?:sha256:)?([0-9a-f]{1,64})")


def check_name(ref: str) -> str:
    """Return `ref` when it is the name of an image. Raises RequestError."""
    if len(ref) > REF_MAX or _NAME.fullmatch(ref) is None:
        shown = ascii(ref if len(ref) <= 80 else f"{ref[:77]}...")
        raise RequestError(
            f"invalid image name {shown}",
            hint="names look like bio101:2026; a digest starts with sha256:",
            field="image",
        )
    return ref


def ref_of(descriptor: Descriptor) -> str:
    """The name that an index gives a manifest; its digest when it has none."""
    return descriptor.annotations.get(REF_NAME_ANNOTATION) or descriptor.digest


def find_descriptor(descriptors: Iterable[Descriptor], ref: str) -> Descriptor:
    """The manifest that a name, a digest or an unambiguous beginning of a digest means.

    Raises RequestError for what can be neither, ImageNotFound for what is not there.
    """
    candidates = list(descriptors)
    match = _HEX.fullmatch(ref) if len(ref) <= REF_MAX else None
    if match is None:
        check_name(ref)
    for descriptor in candidates:
        if descriptor.annotations.get(REF_NAME_ANNOTATION) == ref:
            return descriptor
    if match is not None and len(match[1]) >= _PREFIX_MIN:
        prefix = f"sha256:{match[1]}"
        found = {d.digest: d for d in candidates if d.digest.startswith(prefix)}
        if len(found) > 1:
            raise RequestError(
                f"image digest {ref} is ambiguous: {len(found)} images begin so", field="image"
            )
        if found:
            digest = Digest.parse(next(iter(found)))
            return found[str(digest)]
    raise ImageNotFound(f"no image {ref!r} in the store", hint="see: sandboxkernel image ls")


def index_of(manifests: tuple[Descriptor, ...]) -> Index:
    """An index of these manifests."""
    return Index(schema_version=2, media_type=INDEX_MEDIA_TYPE, manifests=manifests)


def with_entry(index: Index, entry: Descriptor) -> Index:
    """The index with one more named manifest; who had the name, or the digest, gives it up."""
    name = entry.annotations[REF_NAME_ANNOTATION]
    others = []
    for old in index.manifests:
        kept = _without_name(old) if old.annotations.get(REF_NAME_ANNOTATION) == name else old
        nameless = REF_NAME_ANNOTATION not in kept.annotations
        if not (nameless and kept.digest == entry.digest):
            others.append(kept)
    return index_of((*others, entry))


def _without_name(entry: Descriptor) -> Descriptor:
    annotations = {k: v for k, v in entry.annotations.items() if k != REF_NAME_ANNOTATION}
    return msgspec.structs.replace(entry, annotations=annotations)
