"""Host id ranges: one per user, for good. Effectful: one JSON file.

A range is never given to another user, not even after its layer was deleted: files of the old
owner that were overlooked must not become somebody else's.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from sandboxkernel.errors import ResourcesExhausted

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
            self._slots = {
                str(uid): int(slot) for uid, slot in json.loads(path.read_text()).items()
            }

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
        temporary = self._path.with_suffix(".new")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(fd, json.dumps(slots, indent=1).encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.replace(self._path)
        self._slots = slots
