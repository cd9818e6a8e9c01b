"""Content digests as the OCI image spec writes them. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sandboxkernel.errors import ImageError

__all__ = ["Digest"]

_SHA256 = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A SHA-256 content digest (OCI image-spec, descriptor.md, Digests); str() is "sha256:..."."""

    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Accept exactly "sha256:" and 64 lower-case hex digits. Raises ImageError."""
        match = _SHA256.fullmatch(text)
        if match is None:
            shown = ascii(text[:80])
            raise ImageError(f"invalid digest {shown}: not sha256: and 64 lower-case hex digits")
        return cls(match[1])

    def __str__(self) -> str:
        return f"sha256:{self.hex}"

    @property
    def short(self) -> str:
        """The first 12 hex digits, for people."""
        return self.hex[:12]
