"""What `make neighbour` has measured is in its record and on its page."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest

from sandboxkernel.models import ExitInfo
from tests.neighbour.__main__ import KINDS, PROCESSORS, fate_of, keep, put_into
from tests.neighbour.bombs import AGAIN, BOMBS, SWAPPING

ROOT = Path(__file__).resolve().parents[2]
ROW: dict[str, Any] = {"fate": "runs", **{kind: {"p50": 1.0, "p99": 2.0} for kind in KINDS}}
FIRST, SECOND = list(BOMBS)[:2]


def test_the_page_has_the_figures_of_the_record() -> None:
    record = json.loads((ROOT / "docs/benchmarks/neighbour.json").read_text())
    page = (ROOT / "docs/security.md").read_text()
    assert put_into(page, record) == page, "run make neighbour"


@pytest.mark.parametrize("name", ["neighbour.json", "neighbour-v2.json"])
def test_what_was_measured_is_a_bomb_that_there_is(name: str) -> None:
    record = json.loads((ROOT / "docs/benchmarks" / name).read_text())
    assert record["bombs"].keys() <= BOMBS.keys()
    assert not any(row["left"] for row in record["bombs"].values())


def test_bombs_that_are_started_again_exist() -> None:
    assert SWAPPING in AGAIN and set(AGAIN) <= set(BOMBS)


def test_ends_are_told_with_the_least_memory_that_one_had() -> None:
    ends = [ExitInfo(reason="oom_killed", memory_peak_bytes=n << 20) for n in (512, 509)]
    assert fate_of(ends) == "oom_killed, 2 times, at 509 MiB or more"
    assert fate_of([*ends, ExitInfo(reason="exited")]).startswith(
        "exited, oom_killed, 3 times, at 0"
    )
    assert fate_of(ends[:1]) == "oom_killed, once, at 512 MiB or more"
    assert fate_of([]) == "runs"


def test_bombs_that_were_not_asked_for_keep_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "neighbour.json"
    keep(path, {SECOND: ROW})
    keep(path, {FIRST: {**ROW, "fate": "oom_killed"}})
    record = json.loads(path.read_text())
    assert [*record["bombs"]] == [FIRST, SECOND]
    assert (record["linux"], record["processors"]) == (platform.release(), PROCESSORS)
    path.write_text(json.dumps({**record, "processors": PROCESSORS + 1}))
    keep(path, {FIRST: ROW})
    assert [*json.loads(path.read_text())["bombs"]] == [FIRST]
