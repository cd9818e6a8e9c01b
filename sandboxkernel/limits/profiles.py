"""Profiles: what an administrator offers, by name. Pure.

A profile in the configuration is a dictionary:

    c.SandboxKernelDaemon.profiles = {
        "bio101": {
            "description": "Biology 101",
            "image": "host",
            "limits": {"memory": "1G", "cpus": 0.5, "pids": 128},
            "maximum": {"memory": "2G", "cpus": 1},
            "mounts": [{"source": "/srv/bio101", "destination": "/srv/bio101"}],
        }
    }
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import Struct

from sandboxkernel.errors import LimitError, RequestError
from sandboxkernel.limits.clamp import check_wish, clamp
from sandboxkernel.models import PROFILE_PATTERN, IoLimit, Limits
from sandboxkernel.units import parse_size, shown

__all__ = [
    "DEFAULT_PROFILE",
    "EXECUTORS",
    "NATIVE",
    "Profile",
    "ProfileMount",
    "checked",
    "parse_limits",
    "parse_profiles",
]

MIB = 1 << 20
_NUMBER_MAX = 1 << 62
# What a kernel gets when nobody configured anything: enough for a course, not for a machine.
DEFAULT_LIMITS = Limits(
    memory_bytes=2048 * MIB,
    swap_bytes=0,
    cpus=2.0,
    cpu_weight=100,
    pids=512,  # tasks, threads included; an idle ipykernel has about 12
    shm_bytes=512 * MIB,
    tmp_bytes=1024 * MIB,
)
_SIZES = {"memory": "memory_bytes", "swap": "swap_bytes", "shm": "shm_bytes", "tmp": "tmp_bytes"}
_NUMBERS = {"cpus": "cpus", "cpu_weight": "cpu_weight", "pids": "pids"}
_IO = {
    "io_read": "read_bytes_per_s",
    "io_write": "write_bytes_per_s",
    "io_read_ops": "read_ops_per_s",
    "io_write_ops": "write_ops_per_s",
}


SPARES_DEFAULT = 4  # about 15 MiB each, and only after as many starts within a minute
SPARES_MAX = 64


@dataclass(frozen=True, slots=True)
class ProfileMount:
    """A folder of the administrator's that every sandbox of the profile sees."""

    source: str
    destination: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class Profile:
    """One offer. `limits` apply when nothing is wished for, `maximum` bounds every wish.

    `work_folders` are the roots below which a work folder may lie; `home` says what happens
    when the work folder is or contains the caller's home: its hidden entries are covered
    ("mask"), the start is refused ("refuse"), or they are visible ("allow").

    `zygote` says who shares the prepared process from which kernels are forked: all users of
    the profile ("profile"), nobody ("user": one for each), or that there is none ("off").
    `preload` are modules that it imports ahead, `spares` how many kernels at most are forked ahead,
    `min_spares` how many of them wait also when nobody starts any, from the daemon's start on.

    `executor` is what makes the containers: "native", or another OCI runtime that is installed,
    with the same limits and confinement, and no zygote.
    """

    name: str
    description: str = ""
    image: str = "host"
    limits: Limits = DEFAULT_LIMITS
    maximum: Limits = DEFAULT_LIMITS
    mounts: tuple[ProfileMount, ...] = ()
    work_folders: tuple[str, ...] = ("/",)
    home: str = "mask"
    ephemeral: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    zygote: str = "profile"
    preload: tuple[str, ...] = ()
    spares: int = SPARES_DEFAULT
    min_spares: int = 0
    executor: str = "native"


NATIVE = "native"
EXECUTORS = (NATIVE, "runc")
DEFAULT_PROFILE = Profile(name="default", description="Sandboxed Python")


class _MountTypes(Struct, forbid_unknown_fields=True):
    source: str
    destination: str = ""
    read_only: bool = True


class _ProfileTypes(Struct):
    """Words are no lists, and "no" is not yes: both would be taken for something else."""

    description: str = ""
    image: str = ""
    limits: dict[str, Any] = {}
    maximum: dict[str, Any] = {}
    mounts: list[_MountTypes] = []
    work_folders: list[str] = []
    home: str = ""
    ephemeral: bool = False
    env: dict[str, str | int | float] = {}
    zygote: str = ""
    preload: list[str] = []


def checked(where: str, raw: object, kind: Any) -> None:
    """Raise RequestError unless a part of the configuration has the types of `kind`."""
    try:
        msgspec.convert(raw, kind)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise RequestError(f"{where}: {exc}", field=where) from exc


def parse_limits(raw: Mapping[str, Any], *, where: str) -> Limits:
    """Limits as people write them ("2G", 0.5) to a checked model."""
    values: dict[str, Any] = {}
    io: dict[str, Any] = {}
    for key, value in raw.items():
        field_name = f"{where}.{key}"
        if key in _SIZES:
            values[_SIZES[key]] = parse_size(value, field=field_name)
        elif key in _NUMBERS:
            values[_NUMBERS[key]] = _number(value, field_name, whole=key != "cpus")
        elif key in _IO:
            io[_IO[key]] = parse_size(value, field=field_name)
        else:
            known = ", ".join([*_SIZES, *_NUMBERS, *_IO])
            raise LimitError(
                f"{field_name} is not a limit", hint=f"Known: {known}.", field=field_name
            )
    limits = Limits(**values, io=IoLimit(**io) if io else None)
    check_wish(limits, where=where)
    return limits


def _number(value: Any, field_name: str, *, whole: bool) -> Any:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        kind = "a whole number" if whole else "a number"
        raise LimitError(f"{field_name} is {shown(value)}, not {kind}", field=field_name)
    if whole or not -_NUMBER_MAX < value < _NUMBER_MAX:
        return value  # and refused by its bounds
    return float(value)


def parse_profiles(raw: Mapping[str, Mapping[str, Any]]) -> dict[str, Profile]:
    """Profiles of the configuration by name. "default" exists unless it is redefined."""
    profiles = {DEFAULT_PROFILE.name: DEFAULT_PROFILE}
    checked("profiles", raw, dict[str, Any])
    for name, members in raw.items():
        profiles[name] = _parse_profile(name, members)
    return profiles


def _parse_profile(name: str, raw: Mapping[str, Any]) -> Profile:
    where = f"profiles.{name}"
    checked(where, raw, dict[str, Any])
    if not re.match(PROFILE_PATTERN, name):
        raise RequestError(f"profile name {name!r} does not match {PROFILE_PATTERN}", field=where)
    known = set(Profile.__dataclass_fields__) - {"name"}
    unknown = set(raw) - known
    if unknown:
        raise RequestError(
            f"{where} has unknown members {sorted(unknown)}",
            hint=f"Known: {', '.join(sorted(known))}.",
            field=where,
        )
    checked(where, raw, _ProfileTypes)
    limits = clamp(
        parse_limits(raw.get("limits", {}), where=f"{where}.limits"), DEFAULT_LIMITS, Limits()
    )
    # Without a maximum of its own, a profile's limits are its maximum: nobody gets more by wishing.
    maximum = clamp(
        parse_limits(raw.get("maximum", {}), where=f"{where}.maximum"), limits, Limits()
    )
    preload = tuple(raw.get("preload", ()))
    for module in preload:
        if not isinstance(module, str) or not all(p.isidentifier() for p in module.split(".")):
            raise RequestError(f"{where}.preload: {module!r} is not a module's name", field=where)
    spares = _count(raw, "spares", SPARES_DEFAULT, SPARES_MAX, where)
    profile = Profile(
        name=name,
        description=str(raw.get("description", "")),
        image=str(raw.get("image", "host")),
        limits=clamp(limits, limits, maximum),
        maximum=maximum,
        mounts=tuple(_parse_mount(mount, where) for mount in raw.get("mounts", ())),
        work_folders=tuple(_absolute(p, where) for p in raw.get("work_folders", ("/",))),
        home=_choice(raw, "home", ("mask", "refuse", "allow"), where),
        ephemeral=bool(raw.get("ephemeral", False)),
        env={str(key): str(value) for key, value in raw.get("env", {}).items()},
        zygote=_choice(raw, "zygote", ("profile", "user", "off"), where),
        preload=preload,
        spares=spares,
        min_spares=_count(raw, "min_spares", 0, spares, where),
        executor=_choice(raw, "executor", EXECUTORS, where),
    )
    _check_min_spares(profile, where)
    return profile


def _count(raw: Mapping[str, Any], key: str, default: int, most: int, where: str) -> int:
    number = raw.get(key, default)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= most:
        raise RequestError(f"{where}.{key} is {shown(number)}, not 0 to {most}", field=where)
    return number


def _check_min_spares(profile: Profile, where: str) -> None:
    """Spares that wait for anybody need a zygote of everybody's, and limits that hold ahead."""
    lack = (
        f"executor {profile.executor!r} has no zygote" if profile.executor != NATIVE
        else f"zygote is {profile.zygote!r}, not 'profile'" if profile.zygote != "profile"
        else "its limits of disk traffic cannot be set ahead" if profile.limits.io
        else ""
    )  # fmt: skip
    if profile.min_spares and lack:
        raise RequestError(
            f"{where}.min_spares is {profile.min_spares}, but {lack}",
            hint="Leave min_spares out, or change what it says.",
            field=where,
        )


def _choice(raw: Mapping[str, Any], key: str, words: tuple[str, ...], where: str) -> str:
    """One of `words`, the first by default."""
    word = raw.get(key, words[0])
    if word not in words:
        raise RequestError(f"{where}.{key} is {word!r}, not one of {', '.join(words)}", field=where)
    return str(word)


def _parse_mount(raw: Mapping[str, Any], where: str) -> ProfileMount:
    unknown = set(raw) - {"source", "destination", "read_only"}
    if unknown or "source" not in raw:
        raise RequestError(
            f"{where}.mounts needs source, has unknown {sorted(unknown)}", field=where
        )
    source = _absolute(raw["source"], where)
    return ProfileMount(
        source=source,
        destination=_absolute(raw.get("destination", source), where),
        read_only=bool(raw.get("read_only", True)),
    )


def _absolute(path: Any, where: str) -> str:
    # Of two slashes at the beginning, normpath() keeps both.
    if (
        not isinstance(path, str)
        or not path.startswith("/")
        or path.startswith("//")
        or posixpath.normpath(path) != path
    ):
        raise RequestError(f"{where}: {path!r} is not an absolute, normalised path", field=where)
    return path
