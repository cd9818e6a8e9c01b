"""The host's memory that is left to kernels: what is only made ahead must not take it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Reserve", "available_share"]


@dataclass(frozen=True, slots=True)
class Reserve:
    """`share` of the host's memory is to be available; below it nothing is made ahead."""

    share: float

    def is_short(self) -> bool:
        """No more spares and zygotes; spares that wait are ended."""
        return available_share() < self.share

    def is_critical(self) -> bool:
        """Zygotes are ended, too, those that were used longest ago first."""
        return available_share() < self.share / 2


def available_share() -> float:
    """MemAvailable of MemTotal (proc_meminfo(5))."""
    text = Path("/proc/meminfo").read_text()
    facts = dict(line.split(":", 1) for line in text.splitlines())
    return int(facts["MemAvailable"].split()[0]) / int(facts["MemTotal"].split()[0])
