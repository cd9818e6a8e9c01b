"""What `make faults` has found is in its record and on its page, and no lesser run replaces it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.faults.figures import NAMES, dirty, keep, put_into
from tests.faults.record import ERRNOS, Found
from tests.faults.scenarios import SCENARIOS
from tests.faults.served import SERVED

ROOT = Path(__file__).resolve().parents[2]
WHOLE: dict[str, Any] = {
    "errnos": list(ERRNOS), "every": 1, "interrupted": False, **Found(points=3, faults=15).document()
}  # fmt: skip


def test_the_page_has_the_figures_of_the_record() -> None:
    record = json.loads((ROOT / "docs/benchmarks/faults.json").read_text())
    assert dirty(record) == []
    page = (ROOT / "docs/security.md").read_text()
    assert put_into(page, record) == page, "run make faults"


def test_every_scenario_of_the_launcher_has_a_row() -> None:
    assert list(NAMES) == list(SCENARIOS)


def test_a_whole_run_replaces_the_record() -> None:
    """Those of a real daemon take one operation of some, in turn: as many as the record says."""
    record = json.loads((ROOT / "docs/benchmarks/faults.json").read_text())
    for name, sampled in SERVED.items():
        assert record[name]["every"] >= sampled.every


def test_findings_are_told_from_none() -> None:
    for kind in ("problems", "leaks", "user code ran"):
        assert dirty({"exec": WHOLE, "cold": {**WHOLE, kind: ["something"]}}) == ["cold"]


@pytest.mark.parametrize(
    ("lesser", "reason"),
    [
        ({"interrupted": True}, "the run was interrupted"),
        ({"errnos": ["EPERM", "EIO"]}, "the record has ENOSYS, EINVAL, ENOMEM"),
        ({"errnos": "one a point, in turn"}, "the record has "),
        ({"every": 2}, "the record has every operation"),
    ],
)
def test_a_lesser_run_replaces_nothing(lesser: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    assert keep(path, "exec", WHOLE) == ""
    before = path.read_text()
    assert keep(path, "exec", {**WHOLE, **lesser}).startswith(reason)
    assert path.read_text() == before


def test_an_equal_run_replaces_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    for name in ("exec", "cold"):
        assert keep(path, name, WHOLE) == ""
    assert keep(path, "exec", {**WHOLE, "points": 4}) == ""
    record = json.loads(path.read_text())
    assert list(record) == ["cold", "exec"]
    assert (record["cold"]["points"], record["exec"]["points"]) == (3, 4)
