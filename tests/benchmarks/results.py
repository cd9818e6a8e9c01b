"""What a run has measured: series of samples by peer, and the facts beside them. Pure.

JSON has no infinity: a failed start is written as null, its reasons are counted beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Results", "Series", "from_document", "to_document"]

REASON_MAX = 160  # characters of a failure's reason that are kept


@dataclass
class Series:
    """One thing measured for several peers. Sample i of every peer belongs to block i."""

    title: str
    unit: str
    values: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, dict[str, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, peer: str, value: float) -> None:
        """Record a sample of a peer."""
        self.values.setdefault(peer, []).append(value)

    def fail(self, peer: str, reason: str) -> None:
        """Record a failure: an infinite sample, with its reason."""
        self.add(peer, math.inf)
        short = " ".join(reason.split())[:REASON_MAX] or "no reason given"
        counts = self.failures.setdefault(peer, {})
        counts[short] = counts.get(short, 0) + 1


@dataclass
class Results:
    """Everything of one run."""

    facts: dict[str, Any] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)

    def open(self, key: str, title: str, unit: str) -> Series:
        """The series `key`, made when it is new."""
        return self.series.setdefault(key, Series(title, unit))


def to_document(results: Results) -> dict[str, Any]:
    """A JSON document: samples rounded to a thousandth of their unit, infinity as null."""
    return {
        "facts": results.facts,
        "series": {
            key: {
                "title": series.title,
                "unit": series.unit,
                "values": {peer: [_finite(v) for v in vs] for peer, vs in series.values.items()},
                "failures": series.failures,
                "notes": series.notes,
            }
            for key, series in results.series.items()
        },
    }


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else round(value, 6 if abs(value) < 1 else 3)


def from_document(document: dict[str, Any]) -> Results:
    """The results that to_document() has written."""
    series = {}
    for key, raw in document["series"].items():
        values = {
            peer: [math.inf if v is None else float(v) for v in vs]
            for peer, vs in raw["values"].items()
        }
        series[key] = Series(raw["title"], raw["unit"], values, raw["failures"], raw["notes"])
    return Results(document["facts"], series)
