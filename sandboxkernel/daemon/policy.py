"""Who may do what: the administrator's configuration, parsed. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sandboxkernel.errors import NotPermitted, ProfileNotFound, RequestError
from sandboxkernel.limits import Grant, Profile, Subject, granted
from sandboxkernel.models import Limits

__all__ = ["Policy", "check_min_spares"]


@dataclass(frozen=True, slots=True)
class Policy:
    """`admins` are group names beside root."""

    profiles: dict[str, Profile]
    grants: tuple[Grant, ...]
    default_profile: str = "default"
    admins: frozenset[str] = frozenset()
    max_kernels: int = 1000
    cgroup_parent: str = "sandboxkernel"

    def is_admin(self, subject: Subject) -> bool:
        """Whether the caller sees and may end everybody's sandboxes."""
        return subject.uid == 0 or bool(subject.group_names & self.admins)

    def grant_of(self, subject: Subject) -> Grant:
        """What somebody may do. Raises NotPermitted for who may start nothing."""
        grant = granted(self.grants, subject)
        if grant is None:
            raise NotPermitted(
                f"user {subject.name} may not start sandboxes",
                hint="Ask the administrator for a grant.",
            )
        return grant

    def profile_for(self, subject: Subject, name: str | None) -> tuple[Profile, Grant]:
        """The profile asked for, if granted. To others it does not exist."""
        grant = self.grant_of(subject)
        wanted = name or self.default_profile
        offered = sorted(p for p in self.profiles if grant.allows(p))
        if name is None and wanted not in offered and len(offered) == 1:
            wanted = offered[0]
        if wanted not in offered:
            raise ProfileNotFound(
                f"no profile {wanted!r}", hint=f"Offered to you: {', '.join(offered) or 'none'}.",
                field="profile",
            )  # fmt: skip
        return self.profiles[wanted], grant


def check_min_spares(
    profiles: Iterable[Profile], grants: Iterable[Grant], max_zygotes: int
) -> None:
    """Whether spares that are to wait always can, and somebody may have them.

    Raises RequestError.
    """
    standing = [profile for profile in profiles if profile.min_spares]
    if len(standing) > max_zygotes:
        names = ", ".join(profile.name for profile in standing)
        raise RequestError(
            f"{len(standing)} profiles have min_spares ({names}), and max_zygotes is {max_zygotes}",
            hint="Each needs a zygote: set max_zygotes higher.",
        )
    free = [grant for grant in grants if grant.ceiling == Limits()]
    for profile in standing:
        if not any(grant.allows(profile.name) for grant in free):
            raise RequestError(
                f"profiles.{profile.name}.min_spares is {profile.min_spares}, but every grant of "
                "that profile has a ceiling, and a kernel below one is never a spare",
                hint="Grant it without a ceiling (max_kernels and the profile's limits still "
                "hold), or leave min_spares out.",
            )
