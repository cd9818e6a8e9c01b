"""Host id ranges: one per user, for good. Effectful: one JSON file.

A range is never given to another user, not even after its layer was deleted: files of the old
owner that were overlooked must not become somebody else's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from sandboxkernel.daemon.lease import replace_file
from sandboxkernel.errors import ResourcesExhausted, SandboxError

__all__ = ["RANGE_SIZE", "IdRanges"]

RANGE_SIZE = 65536


class IdRanges:
    """Slot n covers `base + n * RANGE_SIZE` and up, for uids and gids alike."""

    def __init__(self, path: Path, *, base: int, count: int) -> None:
        self._path = path
        self._base = base
        self._count = count
        self._slots: dict[str, int] = {}
        if path.exists():
            self._slots = _read(path)

    def base_of(self, uid: int) -> int:
        """The first host id of a user's range; allocates it on first use.

        Raises ResourcesExhausted when every range has an owner.
        """
        slot = self._slots.get(str(uid))
        if slot is None:
            slot = max(self._slots.values(), default=-1) + 1
            if slot >= self._count:
                raise ResourcesExhausted(
                    f"no free id range for uid {uid}: all {self._count} are taken",
                    hint="Raise SandboxKernelDaemon.id_range_count in the daemon's configuration.",
                )
            self._save({**self._slots, str(uid): slot})
        return self._base + slot * RANGE_SIZE

    def _save(self, slots: dict[str, int]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self._path, json.dumps(slots, indent=1).encode(), durable=True)
        self._slots = slots


def _read(path: Path) -> dict[str, int]:
    """Uid to slot. A file that says something else stops the daemon: it must not guess."""
    try:
        slots = msgspec.json.decode(path.read_bytes(), type=dict[str, Annotated[int, Meta(ge=0)]])
        if len(set(slots.values())) < len(slots):
            raise ValueError("two users have the same range")
        if not all(uid.isascii() and uid.isdecimal() for uid in slots):
            raise ValueError("a name in it is not a uid")
    except (OSError, ValueError) as exc:  # MsgspecError is a ValueError
        raise SandboxError(
            f"cannot read {path}, which says what host ids each user's files have: {exc}",
            hint="Restore it from a backup: with other ids, users would get one another's files.",
        ) from exc
    return slots
