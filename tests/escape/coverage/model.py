"""A claim and its evidence. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

__all__ = ["Claim", "Section"]


@dataclass(frozen=True)
class Claim:
    """One thing that must hold. At least one of the three others shows it, or says why not.

    `attacks` are names of attacks of the same section, where * stands for anything. `shown` names
    tests, or another section or page. `reason` is why there is no more: a sentence.
    """

    text: str
    attacks: tuple[str, ...] = ()
    shown: str = ""
    reason: str = ""

    @property
    def tests(self) -> list[str]:
        """Names of test functions in what is said."""
        return re.findall(r"`(test_\w+)`", f"{self.shown} {self.reason}")

    @property
    def is_shown(self) -> bool:
        """Whether there is evidence, or a whole sentence in its place."""
        elsewhere = re.search(r"`test_\w+`|\b[A-L][0-9]\b|\]\(", self.shown) is not None
        return bool(self.attacks) or elsewhere or self.reason.endswith(".")

    def covers(self, attack: str) -> bool:
        """Whether an attack's name is one of its own."""
        return any(fnmatchcase(attack, pattern) for pattern in self.attacks)

    def line(self, attacks: Iterable[str]) -> str:
        """As Markdown; `attacks` are the names of the section's."""
        text = f"**{self.text}**"
        mine = [name for name in attacks if self.covers(name)]
        if mine:
            text += f": {'; '.join(mine)}"
        said = " ".join(f"{part.rstrip('.')}." for part in (self.shown, self.reason) if part)
        return f"{text}. {said}".rstrip()


@dataclass(frozen=True)
class Section:
    """What belongs together: its name, as A1, and its claims."""

    name: str
    title: str
    claims: tuple[Claim, ...]
