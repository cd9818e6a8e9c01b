"""The catalogue of attacks on what runs in a sandbox; model.py says what an attack is."""

from __future__ import annotations

from tests.escape.attacks import filtered, privileged, views
from tests.escape.attacks.model import Attack, Control

__all__ = ["ALL", "ANYWHERE", "Attack", "Control"]

ALL: tuple[Attack, ...] = (*views.ATTACKS, *privileged.ATTACKS, *filtered.ATTACKS)
ANYWHERE = tuple(attack for attack in ALL if attack.anywhere)
