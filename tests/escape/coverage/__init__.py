"""What a sandbox must withstand, claim by claim, and what shows each: an attack, a test, a reason.

The letters are those of the threat model: A the runtime's own program and descriptors, B mounts, C
/proc and devices, D cgroups, E ids and capabilities, F system calls, G sockets and channels between
sandboxes, H storage, J zygotes, K the daemon's API, L exhaustion.
"""

from __future__ import annotations

from tests.escape.coverage import daemon, runtime, surface
from tests.escape.coverage.model import Claim, Section

__all__ = ["SECTIONS", "Claim", "Section"]

SECTIONS: tuple[Section, ...] = (*runtime.SECTIONS, *surface.SECTIONS, *daemon.SECTIONS)
