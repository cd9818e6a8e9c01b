"""Names and numbers of capabilities. Source: capabilities(7), include/uapi/linux/capability.h."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sandboxruntime.errors import SpecError

__all__ = ["NAMES", "capability_mask"]

NAMES: Final = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
    "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
    "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
    "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
    "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
    "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)  # fmt: skip


def capability_mask(names: Iterable[str]) -> int:
    """The set of the named capabilities ("CAP_KILL"), as a mask. Raises SpecError."""
    mask = 0
    for name in names:
        try:
            mask |= 1 << NAMES.index(name.removeprefix("CAP_"))
        except ValueError:
            raise SpecError(
                f"process.capabilities: unknown capability {name!r}", field="process.capabilities"
            ) from None
    return mask
