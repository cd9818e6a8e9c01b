"""Grants: who may use which profiles, how many kernels, and up to which ceiling. Pure.

    c.SandboxKernelDaemon.grants = [
        {"group": "students", "profiles": ["bio101"], "max_kernels": 3,
         "ceiling": {"memory": "3G", "cpus": 1}},
        {"user": "*", "profiles": ["default"]},
    ]

The first grant that matches a caller is the one that counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta, Struct

from sandboxkernel.errors import RequestError
from sandboxkernel.limits.profiles import checked, parse_limits
from sandboxkernel.models import Limits

__all__ = ["EVERYBODY", "Grant", "Subject", "granted", "parse_grants"]


@dataclass(frozen=True, slots=True)
class Subject:
    """A caller as the socket and the host's user database name it."""

    uid: int
    gid: int
    name: str
    home: str
    groups: tuple[int, ...] = ()
    group_names: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class Grant:
    """`profiles` may hold "*". `ceiling` holds over all kernels of one user together."""

    user: str | None = None
    group: str | None = None
    profiles: frozenset[str] = frozenset({"*"})
    max_kernels: int = 20
    ceiling: Limits = field(default_factory=Limits)

    def matches(self, subject: Subject) -> bool:
        """Whether this grant is for the caller."""
        if self.user is not None:
            return self.user in ("*", subject.name, str(subject.uid))
        return self.group in subject.group_names

    def allows(self, profile: str) -> bool:
        """Whether the caller may use a profile."""
        return "*" in self.profiles or profile in self.profiles


_Name = Annotated[str, Meta(min_length=1)]


class _GrantTypes(Struct):
    user: _Name = "*"
    group: _Name = "*"
    profiles: list[str] = []
    max_kernels: Any = None
    ceiling: dict[str, Any] = {}


EVERYBODY = Grant(user="*")


def granted(grants: Iterable[Grant], subject: Subject) -> Grant | None:
    """The first matching grant; None when nothing is granted."""
    return next((grant for grant in grants if grant.matches(subject)), None)


def parse_grants(raw: Iterable[Mapping[str, Any]]) -> tuple[Grant, ...]:
    """Grants of the configuration, in order. No grants at all: everybody may use everything."""
    checked("grants", raw, list[dict[str, Any]])
    grants = tuple(_parse_grant(f"grants[{index}]", item) for index, item in enumerate(raw))
    return grants or (EVERYBODY,)


def _parse_grant(where: str, raw: Mapping[str, Any]) -> Grant:
    unknown = set(raw) - {"user", "group", "profiles", "max_kernels", "ceiling"}
    if unknown:
        raise RequestError(f"{where} has unknown members {sorted(unknown)}", field=where)
    if ("user" in raw) == ("group" in raw):
        raise RequestError(f"{where} needs either user or group", field=where)
    checked(where, raw, _GrantTypes)
    max_kernels = raw.get("max_kernels", EVERYBODY.max_kernels)
    if not isinstance(max_kernels, int) or isinstance(max_kernels, bool) or max_kernels < 1:
        raise RequestError(f"{where}.max_kernels is {max_kernels!r}, not 1 or more", field=where)
    return Grant(
        user=raw.get("user"),
        group=raw.get("group"),
        profiles=frozenset(raw.get("profiles", ["*"])),
        max_kernels=max_kernels,
        ceiling=parse_limits(raw.get("ceiling", {}), where=f"{where}.ceiling"),
    )
