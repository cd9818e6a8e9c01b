"""Every refusal of a spec, before the first side effect. Pure."""

from __future__ import annotations

import posixpath
import re

from sandboxruntime.errors import SpecError
from sandboxruntime.spec import Spec

__all__ = ["EXECUTORS", "is_normalised", "validate"]

EXECUTORS = ("runc",)  # programs that make a container of an OCI bundle

_CONTAINER_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}\Z")
_HOSTNAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9-]{0,62}\Z")
# Mounting over these would undo the confinement of the container itself.
_RESERVED = ("/proc", "/sys", "/dev", "/run", "/etc", "/usr", "/bin", "/sbin", "/lib", "/lib64")
_EXACTLY_RESERVED = ("/", "/tmp", "/home", "/home/sandbox", "/var", "/var/tmp")
# What a system's Python keeps beside its standard library: packages, and nothing that confines.
_SITE_PACKAGES = re.compile(r"/usr(/local)?/lib/python3(\.\d+)?/(site|dist)-packages\Z")
_ID_MAX = 0xFFFFFFFE
_MEMORY_MIN = 4096
_ZYGOTE_UID_MIN = 65536  # below are the host's own users


def validate(spec: Spec) -> None:
    """Raise SpecError naming the first member that no host should run."""
    if not _CONTAINER_ID.match(spec.container_id):
        raise SpecError(
            f"container id {spec.container_id!r} is not [a-z0-9-]", field="container_id"
        )
    if not _HOSTNAME.match(spec.hostname):
        raise SpecError(f"hostname {spec.hostname!r} is not a DNS label", field="hostname")
    _validate_ids(spec)
    _validate_rootfs(spec)
    _validate_cgroups_path(spec.cgroups_path)
    for bind in spec.binds:
        if not (bind.read_only and _SITE_PACKAGES.match(bind.destination)):
            _validate_destination(bind.destination)
        _validate_absolute(bind.source, "binds.source")
        for name in bind.masked:
            if name.startswith("/") or ".." in name.split("/"):
                raise SpecError(f"masked path {name!r} leaves the bind", field="binds.masked")
    _validate_executor(spec)
    for path in (*spec.masked_paths, *spec.read_only_paths, *spec.writable):
        _validate_absolute(path, "paths")
    for name, value in (("shm_bytes", spec.shm_bytes), ("tmp_bytes", spec.tmp_bytes)):
        if value < _MEMORY_MIN:
            raise SpecError(f"{name} {value} is below one page ({_MEMORY_MIN})", field=name)


def _validate_ids(spec: Spec) -> None:
    if spec.zygote:
        if spec.uid_mappings or spec.gid_mappings:
            raise SpecError("a zygote has no user namespace to map", field="uid_mappings")
        if spec.process.uid < _ZYGOTE_UID_MIN or spec.process.gid < _ZYGOTE_UID_MIN:
            raise SpecError(
                f"a zygote's ids must be {_ZYGOTE_UID_MIN} or more: they are ids of the host",
                field="process.uid",
            )
        return
    for field, mappings in (("uid", spec.uid_mappings), ("gid", spec.gid_mappings)):
        if not mappings:
            raise SpecError(f"no {field} mapping", field=f"{field}_mappings")
        for mapping in mappings:
            end = mapping.host_id + mapping.size - 1
            if mapping.size < 1 or mapping.host_id < 1 or end > _ID_MAX:
                raise SpecError(
                    f"{field} mapping {mapping} maps host id 0 or leaves the id space",
                    field=f"{field}_mappings",
                )
    if spec.process.uid == 0:
        raise SpecError("the process must not be uid 0 inside", field="process.uid")


def _validate_executor(spec: Spec) -> None:
    executor = spec.executor
    if executor is None:
        return
    if executor.program not in EXECUTORS:
        raise SpecError(
            f"executor {executor.program!r} is not one of {', '.join(EXECUTORS)}", field="executor"
        )
    if spec.zygote:
        raise SpecError("a zygote's executor is this package itself", field="executor")
    for path in (executor.python, executor.packages):
        _validate_absolute(path, "executor")
    if executor.packages not in {posixpath.dirname(bind.destination) for bind in spec.binds}:
        raise SpecError(f"no bind is below {executor.packages}", field="executor.packages")


def _validate_rootfs(spec: Spec) -> None:
    if not spec.rootfs.lower:
        raise SpecError("no image layer", field="rootfs.lower")
    for path in (*spec.rootfs.lower, spec.rootfs.upper, spec.rootfs.work):
        _validate_absolute(path, "rootfs")
        # overlayfs separates lower layers by ":" and fsconfig options have no quoting for it.
        if any(character in path for character in ":,\\"):
            raise SpecError(f"layer path {path!r} contains one of : , \\", field="rootfs")


def _validate_cgroups_path(path: str) -> None:
    parts = path.split("/")
    if path.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise SpecError(f"cgroups path {path!r} is not relative and plain", field="cgroups_path")


def is_normalised(path: str) -> bool:
    """Whether a path is its own shortest form. Pure.

    POSIX lets two slashes at the beginning mean something else, and normpath() keeps them.
    """
    return posixpath.normpath(path) == path and not path.startswith("//")


def _validate_absolute(path: str, field: str) -> None:
    if not path.startswith("/") or "\0" in path or not is_normalised(path):
        raise SpecError(f"path {path!r} is not absolute and normalised", field=field)


def _validate_destination(path: str) -> None:
    _validate_absolute(path, "binds.destination")
    reserved = path in _EXACTLY_RESERVED or any(
        path == prefix or path.startswith(prefix + "/") for prefix in _RESERVED
    )
    if reserved:
        raise SpecError(f"nothing may be mounted over {path}", field="binds.destination")
