"""Who may do what: the administrator's configuration, parsed. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from sandboxkernel.errors import NotPermitted, ProfileNotFound
from sandboxkernel.limits import Grant, Profile, Subject, granted

__all__ = ["Policy"]


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
