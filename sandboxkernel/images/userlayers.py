"""The writable layers of the users: one per user and image lineage, kept from kernel to kernel.

    <root>/<uid>/<lineage>/{upper,work,meta.json}     root's, mode 0700
    <root>/.trash/                                    renamed away, being deleted

What lies in `upper` is the user's to fill: see layerdiff.py and treewalk.py. Every step is a
rename or a deletion that may be repeated, so a crash at any moment leaves a whole layer or none.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import msgspec

from sandboxkernel.errors import Conflict, ImageError, LayerNotFound, RequestError
from sandboxkernel.images.layerdiff import diff_layer
from sandboxkernel.images.removal import remove_tree
from sandboxkernel.images.staging import FULL_DISK, hold_lock, storage_errors, sync_directory
from sandboxkernel.images.treewalk import TreeUsage, measure_tree
from sandboxkernel.models import UserLayerChange

__all__ = ["StoredUserLayer", "UserLayerDirs", "UserLayers"]

CONTAINER_UID = 1000  # docs/architecture.md, "Inside a sandbox"
_HOME = ("home", "sandbox")
_TRASH = ".trash"
_META = "meta.json"
_LOCK = ".lock"
_UPPER_MODE = 0o755  # the merged directory has it too, and programs in the sandbox enter it
_LINEAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+@-]{0,254}")
_UID_MAX = 2**32 - 2  # (uid_t)-1 means "no user"


@dataclass(frozen=True, slots=True)
class UserLayerDirs:
    """The directories that overlayfs wants as upperdir and workdir."""

    upper: Path
    work: Path


@dataclass(frozen=True, slots=True)
class StoredUserLayer:
    """A layer on disk. `size_bytes` counts allocated blocks, `files` all entries."""

    owner_uid: int
    lineage: str
    upper: Path
    size_bytes: int
    files: int
    modified_at: datetime


# Aliases, because the method `list` hides the type inside the class.
_Layers: TypeAlias = list[StoredUserLayer]
_Changes: TypeAlias = list[UserLayerChange]


class _Meta(msgspec.Struct, frozen=True, kw_only=True):
    host_uid_base: int
    image_digest: str = ""


class UserLayers:
    """All user layers of one daemon. `root` belongs to root and nobody else enters it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def ensure(
        self, uid: int, lineage: str, host_uid_base: int, *, image_digest: str = ""
    ) -> UserLayerDirs:
        """The layer's directories, made if they are missing. Idempotent, safe in parallel.

        `host_uid_base` is the host uid of the container's root. Raises Conflict when the layer
        belongs to another id range, RequestError for a hostile name, ResourcesExhausted.
        """
        directory = self._directory(uid, lineage)
        with storage_errors(f"make user layer {lineage}"):
            meta = self._read_meta(directory)
            if meta is None:
                self._create(directory, _Meta(host_uid_base=host_uid_base))
                meta = self._read_meta(directory)
            if meta is None or meta.host_uid_base != host_uid_base:
                raise Conflict(
                    f"user layer {lineage} of uid {uid} belongs to another range of host ids",
                    hint="reset the layer, or give the user the range that it had",
                )
            if image_digest and image_digest != meta.image_digest:
                _write_meta(
                    directory, _Meta(host_uid_base=host_uid_base, image_digest=image_digest)
                )
        return UserLayerDirs(directory / "upper", directory / "work")

    def scratch(self, directory: Path, host_uid_base: int) -> UserLayerDirs:
        """A layer of its own for one ephemeral sandbox; `remove_scratch` deletes it."""
        with storage_errors("make a scratch layer"):
            directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.mkdir(mode=0o700)
            _fill(directory, host_uid_base)
        return UserLayerDirs(directory / "upper", directory / "work")

    def remove_scratch(self, directory: Path) -> None:
        """Delete a scratch layer, whatever is in it; fine when it is already gone."""
        with storage_errors("delete a scratch layer"):
            remove_tree(directory)

    def upper_of(self, uid: int, lineage: str) -> Path:
        """Where a layer's upper directory is. Raises LayerNotFound when there is no layer."""
        return self._existing(uid, lineage) / "upper"

    def list(self, uid: int | None = None) -> _Layers:
        """Layers of one user, or of all with None; sorted. Walks them, so it can take a while."""
        users = [str(uid)] if uid is not None else _visible(self.root)
        found = []
        for user in sorted(users):
            if not (user.isascii() and user.isdecimal()):
                continue
            for lineage in _visible(self.root / user):
                upper = self.root / user / lineage / "upper"
                if not upper.is_dir():
                    continue  # being made or removed
                usage = measure_tree(upper)
                modified = datetime.fromtimestamp(usage.modified_at, UTC)
                found.append(
                    StoredUserLayer(
                        int(user), lineage, upper, usage.size_bytes, usage.entries, modified
                    )
                )
        return found

    def usage(self, uid: int, lineage: str) -> TreeUsage:
        """What a layer occupies, overlayfs's work directory included. Raises LayerNotFound."""
        return measure_tree(self._existing(uid, lineage))

    def diff(self, uid: int, lineage: str, *, layer_dirs: Sequence[Path], limit: int) -> _Changes:
        """At most `limit` differences from an image; `layer_dirs` are its layers, lowest first.

        Raises LayerNotFound.
        """
        directory = self._existing(uid, lineage)
        meta = self._read_meta(directory)
        return diff_layer(
            directory / "upper",
            layer_dirs,
            host_uid_base=meta.host_uid_base if meta else 0,
            limit=limit,
        )

    def reset(self, uid: int, lineage: str) -> None:
        """Delete a layer. No sandbox uses it: the caller has made sure. Raises LayerNotFound."""
        directory = self._existing(uid, lineage)
        with storage_errors(f"reset user layer {lineage}"), _claim(directory):
            doomed = directory
            try:
                doomed = self._discard(directory)
            except OSError as exc:
                if exc.errno not in FULL_DISK:
                    raise
                # No room for a name: shrink the layer where it is. Whoever comes meanwhile makes
                # a new one, because the record is the first to go.
                (directory / _META).unlink(missing_ok=True)
            remove_tree(doomed)

    def clean(self) -> None:
        """Finish what a crash interrupted: half-made and half-deleted layers."""
        if not (self.root / _TRASH).is_dir():
            return
        with storage_errors("clean up user layers"):
            with hold_lock(self.root / _LOCK):  # nothing is being made now
                names = _listed(self.root / _TRASH)
            for name in names:
                # Locked or gone: somebody else is at it.
                with (
                    suppress(BlockingIOError, FileNotFoundError),
                    _claim(self.root / _TRASH / name),
                ):
                    remove_tree(self.root / _TRASH / name)

    def _directory(self, uid: int, lineage: str) -> Path:
        if not 0 <= uid <= _UID_MAX:
            raise RequestError(f"invalid uid {uid}", field="uid")
        if len(lineage) > 255 or _LINEAGE.fullmatch(lineage) is None:
            raise RequestError(f"invalid layer name {lineage[:80]!a}", field="lineage")
        return self.root / str(uid) / lineage

    def _existing(self, uid: int, lineage: str) -> Path:
        directory = self._directory(uid, lineage)
        if not (directory / "upper").is_dir():
            raise LayerNotFound(f"uid {uid} has no layer {lineage}")
        return directory

    def _create(self, directory: Path, meta: _Meta) -> None:
        """Make a layer in the trash and rename it in: it appears whole or not at all."""
        trash = self.root / _TRASH
        for parent in (self.root, directory.parent, trash):
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with hold_lock(self.root / _LOCK):
            if self._read_meta(directory) is not None:
                return  # another kernel of the same user was faster; its layer is as good
            if directory.exists():  # a reset on a full disk was interrupted
                self._discard(directory)
            fresh = trash / secrets.token_hex(8)
            fresh.mkdir(mode=0o700)
            _fill(fresh, meta.host_uid_base)
            _write_meta(fresh, meta)
            os.rename(fresh, directory)
            sync_directory(directory.parent)

    def _discard(self, directory: Path) -> Path:
        """Rename a layer away, to be deleted; return its new path."""
        trash = self.root / _TRASH
        trash.mkdir(mode=0o700, exist_ok=True)
        doomed = trash / secrets.token_hex(8)
        os.rename(directory, doomed)
        sync_directory(directory.parent)
        return doomed

    def _read_meta(self, directory: Path) -> _Meta | None:
        try:
            return msgspec.json.decode((directory / _META).read_bytes(), type=_Meta)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as exc:
            raise ImageError(f"cannot read {_META} of user layer {directory.name}: {exc}") from exc


@contextmanager
def _claim(directory: Path) -> Iterator[None]:
    """Be the only one that deletes a layer. Raises BlockingIOError when somebody else does."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def _fill(directory: Path, host_uid_base: int) -> None:
    os.chmod(directory, 0o700)
    (directory / "work").mkdir(mode=0o700)
    place = directory / "upper"
    owner = host_uid_base
    for name in ("", *_HOME):
        place = place / name if name else place
        place.mkdir()
        if name == _HOME[-1]:
            owner = host_uid_base + CONTAINER_UID
        os.chown(place, owner, owner)
        os.chmod(place, _UPPER_MODE)


def _write_meta(directory: Path, meta: _Meta) -> None:
    temporary = directory / f".{_META}.{secrets.token_hex(4)}"
    try:
        with open(temporary, "xb") as file:
            file.write(msgspec.json.encode(meta))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, directory / _META)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise


def _listed(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _visible(directory: Path) -> list[str]:
    return [name for name in _listed(directory) if not name.startswith(".")]
