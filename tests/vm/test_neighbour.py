"""A victim beside each bomb, on pure cgroup v2: tests/neighbour, with fewer round trips."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.neighbour.bombs import BOMBS
from tests.vm.conftest import ROOT

RECORD = Path("/srv/results/neighbour.json")
CELLS = 40  # a phase: its p99 is the slowest
DEADLINE_S = 2400


@pytest.mark.timeout(DEADLINE_S + 60)
def test_no_bomb_leaves_anything_or_stops_the_daemon(stopped: None) -> None:
    """The ratios are a report; the program fails where something of a bomb is left on the host."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.neighbour", "--cells", str(CELLS), "--json", str(RECORD)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEADLINE_S,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    assert all(f"| {name} |" in done.stdout for name in BOMBS)
