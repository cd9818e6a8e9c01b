"""Who may have how much. Pure: profiles, grants, and wishes clamped to both."""

from sandboxkernel.limits.clamp import BOUNDS, check_wish, clamp, most
from sandboxkernel.limits.grants import Grant, Subject, granted, parse_grants
from sandboxkernel.limits.profiles import (
    DEFAULT_PROFILE,
    NATIVE,
    Profile,
    ProfileMount,
    parse_limits,
    parse_profiles,
)

__all__ = [
    "BOUNDS",
    "DEFAULT_PROFILE",
    "NATIVE",
    "Grant",
    "Profile",
    "ProfileMount",
    "Subject",
    "check_wish",
    "clamp",
    "granted",
    "most",
    "parse_grants",
    "parse_limits",
    "parse_profiles",
]
