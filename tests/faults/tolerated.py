"""Operations whose failure lets a start, an end or an exec go on, each with its reason. Reviewed.

What is started in spite of such a failure passes outside verification all the same.
"""

from __future__ import annotations

import errno

__all__ = ["LEFT", "TOLERATED", "ends_by_itself", "may_leave", "reason_for"]

# Part of the operation's place -> errnos (none: every one), and why no confinement is lessened.
TOLERATED: dict[str, tuple[tuple[int, ...], str]] = {
    "cgroup.files._apply <": ((), "what the file shows afterwards is compared with what is wanted"),
    "acting._take_back": ((), "done again, up to three times; a launcher that cannot, ends"),
    "os.setsid in handover.take_over": ((errno.EPERM,), "it is the leader of a session already"),
    "init.be_init": ((), "pid 1 ends, and with it every process of its namespace"),
}
# Removals that leave the one thing that they were to remove, in the launcher's own tmpfs and
# mount namespace: it ends with the launcher.
LEFT = ("os.rmdir in rootfs.", "syscalls.umount2 in rootfs.")


def reason_for(label: str, code: int) -> str:
    """Why a failure of this operation may be passed over; "" if it may not. Pure."""
    for part, (codes, reason) in TOLERATED.items():
        if part in label and (not codes or code in codes):
            return reason
    return ""


def ends_by_itself(label: str) -> bool:
    """Whether the sandbox may end although it was said to have started. Pure."""
    return "init.be_init" in label


def may_leave(label: str, kind: str) -> bool:
    """Whether the launcher may keep something of this kind after this failure. Pure."""
    return kind in ("staging", "mounts") and label.startswith(LEFT)
