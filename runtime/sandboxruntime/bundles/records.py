"""What is remembered of a container between two runs of the command line.

ROOT/ID/config.json is the configuration as it was at `create` (later changes of the bundle have no
effect, runtime.md); state.json tells pid, start time and cgroup; `start` is the FIFO at which the
created process waits, and is gone once it has been told to go on. Status is asked of Linux, never
remembered.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sandboxruntime.bundles.config import Config, parse_config
from sandboxruntime.cgroup import Cgroup, read_layout
from sandboxruntime.errors import ContainerNotFound, SpecError, StateError
from sandboxruntime.verify import start_ticks

__all__ = ["Record", "Records", "Status"]

Status = Literal["created", "running", "paused", "stopped"]
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,1023}\Z")


@dataclass(frozen=True, slots=True)
class Record:
    """state.json. `ticks` tells a process from a later one of the same pid."""

    id: str
    bundle: str
    pid: int
    ticks: int
    cgroup: str
    created: str


class Records:
    """The directory of all containers of one --root."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @contextlib.contextmanager
    def new(self, container_id: str) -> Iterator[Path]:
        """A directory for one more container; removed again when the block fails."""
        if not _ID.match(container_id):
            raise SpecError(f"container id {container_id!r} is not [A-Za-z0-9_.+-]", field="id")
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = self._root / container_id
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            raise StateError(f"container {container_id} exists already",
                             container_id=container_id, status="exists") from None  # fmt: skip
        try:
            yield directory
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise

    def save(self, record: Record) -> None:
        """Write state.json, whole or not at all."""
        path = self._root / record.id / "state.json"
        path.with_suffix(".new").write_text(json.dumps(asdict(record)))
        path.with_suffix(".new").rename(path)

    def load(self, container_id: str) -> Record:
        """Raises ContainerNotFound, also for one whose `create` has not come to its end."""
        try:
            if not _ID.match(container_id):
                raise ContainerNotFound(container_id)
            return Record(**json.loads((self._root / container_id / "state.json").read_text()))
        except FileNotFoundError:
            raise ContainerNotFound(container_id) from None

    def all(self) -> list[Record]:
        """Every container, oldest first."""
        found = []
        for path in self._root.glob("*/state.json"):
            with contextlib.suppress(ContainerNotFound):  # deleted meanwhile
                found.append(self.load(path.parent.name))
        return sorted(found, key=lambda record: record.created)

    def config(self, record: Record) -> Config:
        """The configuration as it was at create."""
        return parse_config(self.config_data(record.id))

    def save_config(self, record: Record, data: dict[str, Any]) -> None:
        """Replace the configuration: its limits have been changed."""
        path = self._root / record.id / "config.json"
        path.with_suffix(".new").write_text(json.dumps(data))
        path.with_suffix(".new").rename(path)

    def config_data(self, container_id: str) -> dict[str, Any]:
        """The configuration as JSON; also of a container whose `create` was killed."""
        data: dict[str, Any] = json.loads(
            (self._root / container_id / "config.json").read_text(encoding="utf-8")
        )
        return data

    def fifo(self, record: Record) -> Path:
        """Where the created process waits."""
        return self._root / record.id / "start"

    def forget(self, container_id: str) -> None:
        """Remove the directory."""
        shutil.rmtree(self._root / container_id, ignore_errors=True)

    def leftover(self, container_id: str) -> bool:
        """Whether a `create` was killed in the middle: there is a directory, and no record."""
        return bool(_ID.match(container_id)) and (self._root / container_id).is_dir()

    def status(self, record: Record) -> Status:
        """What Linux says."""
        if not is_alive(record):
            return "stopped"
        if self.fifo(record).exists():
            return "created"
        return "paused" if cgroup_of(record).is_frozen() else "running"

    def state(self, record: Record, status: Status | None = None) -> dict[str, Any]:
        """The state that `state` prints and hooks read. Source: runtime.md, State."""
        config = self.config(record)
        status = status or self.status(record)
        return {
            "ociVersion": config.version,
            "id": record.id,
            "status": status,
            "pid": record.pid if status != "stopped" else 0,
            "bundle": record.bundle,
            "rootfs": os.path.join(record.bundle, config.root),
            "created": record.created,
            "annotations": dict(config.annotations),
        }


def is_alive(record: Record) -> bool:
    """Whether the very process is there, and has not ended."""
    try:
        if start_ticks(record.pid) != record.ticks:
            return False
        stat = Path(f"/proc/{record.pid}/stat").read_text(errors="replace")
        return stat.rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def cgroup_of(record: Record) -> Cgroup:
    """Its cgroup, whether it is there or not."""
    return Cgroup(read_layout(), record.cgroup)
