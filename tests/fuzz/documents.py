"""Documents of the OCI image spec, read a second time, in Python.

msgspec, which the product reads them with, is C: atheris sees none of its branches, and has nothing
to go by. It sees those of this reader, which says what is wrong with a document by the
specification (descriptor.md, image-index.md, manifest.md, config.md). So what is made up gets
as far as documents that are nearly right, and a document that the two read differently is found.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from sandboxkernel.images.manifest import (
    INDEX_MEDIA_TYPE,
    MANIFEST_MEDIA_TYPE,
    ImageConfig,
    Index,
    Manifest,
)

__all__ = ["KINDS", "UNREADABLE", "read"]

SIZE_MAX = (1 << 53) - 1
UNREADABLE = object()  # in place of what is no JSON
Problem = str | None


def read(data: bytes) -> Any:
    """A document as Python's own reader has it. ValueError or RecursionError for what is no JSON."""
    return json.loads(data.decode(), parse_constant=_refuse)


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def index(raw: Any) -> Problem:
    """What is wrong with an index."""
    return _first(
        _object(raw),
        lambda: _whole(raw, "schemaVersion"),
        lambda: _media_type(raw, INDEX_MEDIA_TYPE),
        lambda: _each(raw.get("manifests", []), descriptor),
    )


def manifest(raw: Any) -> Problem:
    """What is wrong with a manifest."""
    return _first(
        _object(raw),
        lambda: _whole(raw, "schemaVersion"),
        lambda: _media_type(raw, MANIFEST_MEDIA_TYPE),
        lambda: descriptor(raw.get("config")),
        lambda: _each(raw.get("layers"), descriptor),
        lambda: _texts_by_name(raw.get("annotations", {})),
    )


def descriptor(raw: Any) -> Problem:
    """What is wrong with a descriptor."""
    return _first(
        _object(raw),
        lambda: _text(raw.get("mediaType")),
        lambda: _text(raw.get("digest")),
        lambda: _whole(raw, "size"),
        lambda: None if 0 <= raw["size"] <= SIZE_MAX else "a size out of range",
        lambda: _texts_by_name(raw.get("annotations", {})),
    )


def image_config(raw: Any) -> Problem:
    """What is wrong with the configuration of an image."""
    return _first(
        _object(raw),
        lambda: _text(raw.get("created", "")) if raw.get("created") is not None else None,
        lambda: _text(raw.get("architecture")),
        lambda: _text(raw.get("os")),
        lambda: _container(raw.get("config", {})),
        lambda: _object(raw.get("rootfs")),
        lambda: _text(raw["rootfs"].get("type")),
        lambda: _each(raw["rootfs"].get("diff_ids"), _text),
        lambda: _each(raw.get("history", []), _history),
    )


def _container(raw: Any) -> Problem:
    return _first(
        _object(raw),
        lambda: _optional(raw.get("User"), _text),
        lambda: _optional(raw.get("WorkingDir"), _text),
        lambda: _optional(raw.get("Env"), lambda value: _each(value, _text)),
        lambda: _optional(raw.get("Entrypoint"), lambda value: _each(value, _text)),
        lambda: _optional(raw.get("Cmd"), lambda value: _each(value, _text)),
        lambda: _optional(raw.get("Labels"), _texts_by_name),
    )


def _history(raw: Any) -> Problem:
    return _first(
        _object(raw),
        lambda: _optional(raw.get("created"), _text),
        lambda: _optional(raw.get("created_by"), _text),
        lambda: _optional(raw.get("comment"), _text),
        lambda: None if isinstance(raw.get("empty_layer", False), bool) else "neither yes nor no",
    )


def _first(problem: Problem, *checks: Callable[[], Problem]) -> Problem:
    for check in checks:
        if problem is not None:
            return problem
        problem = check()
    return problem


def _object(raw: Any) -> Problem:
    return None if isinstance(raw, dict) else "no object"


def _text(raw: Any) -> Problem:
    return None if isinstance(raw, str) else "no text"


def _whole(raw: dict[str, Any], name: str) -> Problem:
    return None if type(raw.get(name)) is int else f"{name} is no whole number"


def _media_type(raw: dict[str, Any], wanted: str) -> Problem:
    found = raw.get("mediaType", "")
    return None if found in ("", wanted) else "the media type of something else"


def _optional(raw: Any, check: Callable[[Any], Problem]) -> Problem:
    return None if raw is None else check(raw)


def _each(raw: Any, check: Callable[[Any], Problem]) -> Problem:
    if not isinstance(raw, list):
        return "no list"
    return next((problem for item in raw if (problem := check(item)) is not None), None)


def _texts_by_name(raw: Any) -> Problem:
    return _object(raw) or _each(list(raw.values()), _text)


KINDS: dict[type[Index] | type[Manifest] | type[ImageConfig], Callable[[Any], Problem]] = {
    Index: index,
    Manifest: manifest,
    ImageConfig: image_config,
}
